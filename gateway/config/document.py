"""A YAML file as plain data, with the line that each part of it stands on.

Every scalar stays the text that was written, and the shapes in `settings` decide what it means: `no` can name a model
and `0123` can be a key, while `"8080"`, 8080 and ${PORT} are the same port. Variables are put in after parsing, so a
value can't add structure. It must not know any setting, and its messages never repeat the file's text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from gateway.config.mistake import Mistake, Place

Data = str | None | list["Data"] | dict[str, "Data"]

_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-((?:(?!\$\{)[^}])*))?\}|\$\{")
_NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\ufffe\uffff]")
_TOKEN = re.compile(r"'(?:<[a-z ]+>|[^\w\s'\"]|\\t)'")
_PARTS = 50_000


@dataclass
class Document:
    """What a file says: its data, the line of each place in it (from 1), and what was wrong with it so far.

    `spoilt`: places whose data is not what the file meant, because of a mistake that is told already.
    """

    data: object = None
    lines: dict[Place, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    spoilt: set[Place] = field(default_factory=set)

    def line(self, place: Place) -> int:
        """The line of a place, or of the closest thing around it that is there."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read(text: str, environ: Mapping[str, str]) -> Document:
    """Parse `text` and put variables in. What is no YAML at all is one mistake, with nothing else in the document."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        walk = _Walk(environ)
        walk.document.data = {} if root is None else walk.visit(root, ())
    except yaml.MarkedYAMLError as failure:
        return _unreadable(_reason(failure), _marked_line(failure))
    except yaml.reader.ReaderError as failure:
        return _unreadable("a character that is not allowed", text.count("\n", 0, failure.position) + 1)
    except (RecursionError, _TooMuchError):
        return _unreadable("too deep, too large, or an alias within itself", 1)
    return walk.document


class _TooMuchError(Exception):
    pass


class _Walk:
    """From YAML's nodes to data. Aliases are followed, up to a size: ten lines can mean a billion values."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.document = Document()
        self._environ = environ
        self._left = _PARTS

    def visit(self, node: yaml.Node, place: Place) -> Data:
        self._left -= 1
        if self._left < 0:
            raise _TooMuchError
        self.document.lines.setdefault(place, node.start_mark.line + 1)
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            self._spoilt(place, "tags are not supported", node)
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.visit(part, (*place, index)) for index, part in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag != _NULL:
            return self._text(node, place)
        return None

    def _mapping(self, node: yaml.MappingNode, place: Place) -> Data:
        data: dict[str, Data] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or _NOT_TEXT.search(key.value):
                self._wrong(place, "a key must be plain text", key)
            elif key.tag == _MERGE:
                self._wrong(place, "merge keys (<<) are not supported", key)
            elif key.value in data:
                first = self.document.line((*place, key.value))
                self._wrong((*place, key.value), f"given twice, first on line {first}", key)
            else:
                self.document.lines[(*place, key.value)] = key.start_mark.line + 1
                data[key.value] = self.visit(value, (*place, key.value))
        return data

    def _text(self, node: yaml.ScalarNode, place: Place) -> str:
        def value(found: re.Match[str]) -> str:
            name, default = found.groups()
            if found[0] == "$${":
                return "${"
            if name is None:
                self._spoilt(place, "${ must begin ${NAME} or ${NAME:-default}; write $${ for the characters", node)
                return ""
            given = self._environ.get(name)
            if default is not None:
                return given or default
            if given is None:
                self._spoilt(place, f"the environment variable {name} is not set", node)
                return ""
            return given

        text = _VARIABLE.sub(value, node.value)
        if _NOT_TEXT.search(text):
            self._spoilt(place, "must be one line of text, without control characters", node)
        return text

    def _wrong(self, place: Place, message: str, node: yaml.Node) -> None:
        self.document.mistakes.append(Mistake(place, message, node.start_mark.line + 1))

    def _spoilt(self, place: Place, message: str, node: yaml.Node) -> None:
        self._wrong(place, message, node)
        self.document.spoilt.add(place)


def _unreadable(reason: str, line: int) -> Document:
    return Document(mistakes=[Mistake((), f"not valid YAML: {reason}", line)], spoilt={()})


def _marked_line(failure: yaml.MarkedYAMLError) -> int:
    mark = failure.problem_mark or failure.context_mark
    return mark.line + 1 if mark is not None else 1


def _reason(failure: yaml.MarkedYAMLError) -> str:
    """PyYAML's words up to where they quote the file: an alias, a tag or a scalar may be a secret in a wrong place."""
    problem = failure.problem or "unreadable"
    shown = _TOKEN.sub(lambda token: "\0" * len(token[0]), problem)
    cut = re.split("['\"]", shown, maxsplit=1)[0]
    return problem[: len(cut)].strip().removeprefix("but ").removesuffix("but found").rstrip(" ,")
