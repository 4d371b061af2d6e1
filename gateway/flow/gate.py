"""Who is asking: a key from the request's head alone, so that a stranger's body is never read.

Keys are looked up by digest: how long a look-up takes says nothing of how much of a key was right. Must not know models'
targets, bodies or stores.
"""

import hashlib
from collections.abc import Iterable, Mapping

from gateway.call import Principal
from gateway.errors import CallerError, Unauthorized

ANONYMOUS = Principal("anonymous")


class Gate:
    """Principals by key. With `required` off everybody may pass, and a known key still gives its name."""

    def __init__(self, keys: Mapping[str, Principal], *, required: bool) -> None:
        self._principals = {_digest(key.encode()): principal for key, principal in keys.items()}
        self._required = required

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """Whose request this is. Raises Unauthorized, or CallerError where two keys are given."""
        key = _key(headers)
        principal = None if key is None else self._principals.get(_digest(key))
        if principal is not None:
            return principal
        if self._required:
            raise Unauthorized
        return ANONYMOUS


def may_use(principal: Principal, model: str) -> bool:
    """Whether the principal may ask for `model`."""
    return "*" in principal.models or any(
        model == name or (name.endswith("*") and model.startswith(name[:-1])) for name in principal.models
    )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    given = [(name, value) for name, value in headers if name in (b"authorization", b"x-api-key")]
    if not given:
        return None
    if len({name for name, _ in given}) < len(given):
        raise CallerError("More than one key was given.", code="ambiguous_credentials")
    keys = {value.strip() if name == b"x-api-key" else _bearer(value) for name, value in given}
    if len(keys) > 1:
        raise CallerError("More than one key was given.", code="ambiguous_credentials")
    return keys.pop()


def _bearer(value: bytes) -> bytes:
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""
