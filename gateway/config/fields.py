"""What a single value in the config may be, and the base of all sections: the words that the shapes are written in.

A message says what a value must be and never what it was. Nothing here knows any setting.
"""

import re
from collections.abc import Container
from ipaddress import IPv6Address
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError

from gateway.kinds import KINDS

Secret = SecretStr

RESERVED = "unknown"  # the metrics' label for what is not configured
SCHEMES = frozenset().union(*(traits.schemes for traits in KINDS.values()))
"""Of an upstream's URL; which kind may have which is looked at elsewhere."""


def _model_name(name: str) -> str:
    if not name or len(name) > 256 or re.search(r"[\s${}]", name):
        raise PydanticCustomError(
            "name", "a model's name is 1 to 256 characters without spaces, dollar signs or braces"
        )
    if "*" in name[:-1]:
        raise PydanticCustomError("name", "a * may only be the last character of a name")
    if name == RESERVED:
        raise PydanticCustomError("name", "the name unknown is reserved")
    return name


def _upstream_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name) or name == RESERVED:
        raise PydanticCustomError("name", "must match [a-z0-9][a-z0-9_-]{0,62}, and not be unknown")
    return name


def _host(host: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z._:%-]+", host):
        raise PydanticCustomError("host", "must be a host name or an address")
    return host


def some(things: tuple[Any, ...]) -> tuple[Any, ...]:
    """At least one. Field's own min_length would count only those that are right, and say one mistake twice."""
    if not things:
        raise PydanticCustomError("some", "must not be empty")
    return things


def _visible(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise PydanticCustomError("visible", "must be visible ASCII characters without spaces, and not empty")
    return text


def _visible_secret(secret: SecretStr) -> SecretStr:
    _visible(secret.get_secret_value())
    return secret


def _callers_key(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{8,}", secret.get_secret_value()):
        raise PydanticCustomError("key", "must be at least 8 visible ASCII characters without spaces")
    return secret


_LABEL = r"[0-9A-Za-z_](?:[0-9A-Za-z_-]*[0-9A-Za-z_])?"
_AUTHORITY = re.compile(rf"(?:[^@]*@)?(?:\[([0-9A-Fa-f:.]+)\]|{_LABEL}(?:\.{_LABEL})*\.?)(?::[0-9]+)?")


def _http_url(url: str, schemes: Container[str] = ("http", "https")) -> SplitResult:
    """The parts of a URL that a request can be sent to. Raises PydanticCustomError."""
    try:
        parts = urlsplit(url)
        authority = _AUTHORITY.fullmatch(parts.netloc)
        sound = parts.scheme in schemes and authority is not None and parts.port != 0
        if authority and authority[1]:
            IPv6Address(authority[1])
    except ValueError:
        sound = False
    if not sound or not re.fullmatch(r"[!-~]+", url):
        raise PydanticCustomError("url", "must be an http:// or https:// URL with a host")
    return parts


def base_url(url: str) -> str:
    """The URL, without a slash at its end, if paths can be put behind it. Raises PydanticCustomError."""
    if "@" in _http_url(url, SCHEMES).netloc:
        raise PydanticCustomError("url", "must not hold a user or a password")
    if "?" in url or "#" in url:
        raise PydanticCustomError("url", "must not have a query or a fragment")
    return url.rstrip("/")


def _proxy_url(secret: SecretStr) -> SecretStr:
    _http_url(secret.get_secret_value())
    return secret


def _receiver_url(url: str) -> str:
    _http_url(url)
    return base_url(url)


def _header_name(name: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+", name):
        raise PydanticCustomError("header", "must be the name of a header")
    return name


def _header_value(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", secret.get_secret_value()):
        raise PydanticCustomError("header", "must be visible ASCII characters, with spaces only between them")
    return secret


def _attribute(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][0-9A-Za-z._/-]{0,254}", name):
        raise PydanticCustomError("attribute", "an attribute's name is letters, digits, dots, dashes and slashes")
    return name


def _path(path: str) -> str:
    if not re.fullmatch(r"/(?!/)[!-\"$-~]*", path):
        raise PydanticCustomError("path", "must begin with one /, in visible ASCII characters without spaces or #")
    return path


TENSORS = frozenset(
    (
        *("text_input", "stream", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "min_tokens"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty"),
        *("text_output", "finish_reason", "num_input_tokens", "num_output_tokens"),
    )
)
"""What a tensor can mean. As with all that the config knows of other rooms, a test holds it to theirs."""


def _meaning(name: str) -> str:
    if name not in TENSORS:
        raise PydanticCustomError(
            "tensor", "no tensor means this; known here: {known}", {"known": ", ".join(sorted(TENSORS))}
        )
    return name


Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0)]
Seconds = Positive
Count = Annotated[int, Field(gt=0)]
Host = Annotated[str, AfterValidator(_host)]
HeaderText = Annotated[str, AfterValidator(_visible)]
Url = Annotated[str, AfterValidator(base_url)]
ModelName = Annotated[str, AfterValidator(_model_name)]
UpstreamName = Annotated[str, AfterValidator(_upstream_name)]
FilePath = Annotated[str, Field(min_length=1)]
TensorMeaning = Annotated[str, AfterValidator(_meaning)]
TensorName = Annotated[str, Field(min_length=1, max_length=256)]
UrlPath = Annotated[str, AfterValidator(_path)]
CallersKey = Annotated[Secret, AfterValidator(_callers_key)]
VisibleSecret = Annotated[Secret, AfterValidator(_visible_secret)]
ReceiverUrl = Annotated[str, AfterValidator(_receiver_url)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[Secret, AfterValidator(_header_value)]
AttributeName = Annotated[str, AfterValidator(_attribute)]
ProxyUrl = Annotated[Secret, AfterValidator(_proxy_url)]


class Section(BaseModel):
    """Base of all sections: what is not known is refused, and what was read does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    def values(self) -> dict[str, Any]:
        """The settings in this section by name, secrets in the clear: for handing to the code that they set."""
        given = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in given}
