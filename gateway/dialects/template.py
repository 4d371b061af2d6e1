"""Chat templates: how a model wants a conversation written as one text.

Models bring a template in Jinja, written for the environment that Hugging Face's libraries run it in, and this is the same
one: its whitespace rules, its helpers, and a sandbox, for a template is somebody else's program. Jinja is an extra of this
package, so it is imported when the first template is. Must not know files or upstreams.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.errors import CallerError

_OURS = frozenset(("messages", "tools", "documents", "add_generation_prompt"))
_PROBE = {"role": "user", "content": "."}


class TemplateError(Exception):
    """A template, or what belongs to it, can't be used. Its text is one line, for whoever wrote the config."""


class Template:
    """One model's template. `special`: its special tokens by name, as `bos_token`. `strftime_now`: the time in a format.

    `count`: how many tokens a text is to this model, where its tokenizer is there to say so.

    `variables`: what it looks at beside the messages, such as `enable_thinking`. Raises TemplateError for a template that
    does not compile, or that could not write even one message.
    """

    def __init__(
        self,
        source: str,
        special: Mapping[str, str],
        strftime_now: Callable[[str], str],
        count: Callable[[str], int] | None = None,
    ) -> None:
        try:
            import jinja2  # noqa: PLC0415  # an extra
            import jinja2.ext  # noqa: PLC0415
            import jinja2.meta  # noqa: PLC0415
            import jinja2.nodes  # noqa: PLC0415
            import jinja2.parser  # noqa: PLC0415
            import jinja2.sandbox  # noqa: PLC0415
        except ImportError:
            raise TemplateError("chat templates need jinja2: install gateway[triton]") from None

        class Generation(jinja2.ext.Extension):
            """`{% generation %}` marks what an assistant said, for training, and means nothing here."""

            tags = {"generation"}  # noqa: RUF012  # as jinja2 has it

            def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
                """What stands between the two tags."""
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def refuse(message: str) -> str:
            raise jinja2.TemplateError(message)

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = strftime_now
        try:
            looked_at = jinja2.meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as mistake:
            raise TemplateError(f"not a template (line {mistake.lineno})") from None
        self.count = count
        self._special = dict(special)
        self.variables = frozenset(looked_at) - _OURS - frozenset(special) - frozenset(environment.globals)
        try:
            self.render([_PROBE])
        except CallerError as failure:
            raise TemplateError(f"can't write a single message: {type(failure.__cause__).__name__}") from failure

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
        """The conversation, up to where the assistant's answer begins. Raises CallerError where it can't be written.

        What the template itself says is wrong may hold what was written, and so is not told.
        """
        try:
            ours = {"messages": messages, "add_generation_prompt": True}
            return str(self._template.render({**(variables or {}), **self._special, **ours}))
        except Exception as failure:
            raise CallerError(
                "The model's chat template can't write these messages: their roles, or the order of them.",
                code="invalid_messages",
                param="messages",
            ) from failure


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As templates expect it: JSON and nothing more, where Jinja's own writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
