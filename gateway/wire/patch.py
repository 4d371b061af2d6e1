"""Changes top-level members of a request's body in its bytes, and leaves every other byte as it came.

What a member is called is what its name means, however it is written, and of equal names the last one counts, as it does
for nearly every parser; a changed one is left there once. Must not know what the members mean to an upstream.
"""

import re
from collections.abc import Iterable, Mapping

from gateway.call import Call
from gateway.wire.members import Member, members

Changes = Mapping[str, bytes]
"""Members by name: the text of the value that each is to have; GONE for one that is to go."""

GONE = b""

_Edit = tuple[int, int, bytes]
_LOCATED = frozenset(("model", "stream_options"))  # whose places the call knows, and that there are no two of them
# A letter or an underscore of a name in disguise, as in "mod\u0065l".
_DISGUISED = re.compile(rb"\\u00[567]")


def disguised(text: bytes) -> bool:
    """Whether a name in `text` may be written so that it is not found by its letters."""
    return b"\\u00" in text and _DISGUISED.search(text) is not None


def find(text: bytes, *names: str) -> dict[str, bytes]:
    """The members of these names that an object has, each with the text of its value. Costs next to nothing where it has none."""
    wanted = {name.encode(): name for name in names}
    if not disguised(text) and not any(name in text for name in wanted):
        return {}
    found = (member for member in members(text) if member.name in wanted)
    return {wanted[member.name]: text[member.start : member.end] for member in found}


def patched(call: Call, changes: Changes) -> bytes:
    """The call's body with these changes, and the body itself where there are none."""
    if not changes:
        return call.body
    if not changes.keys() <= _LOCATED or GONE in changes.values():
        return changed(call.body, changes)
    edits: list[_Edit] = []
    if (model := changes.get("model")) is not None:
        edits.append((*call.model_at, model))
    if (options := changes.get("stream_options")) is not None:
        at = call.options_at
        edits.append(_first(call.body, b'"stream_options":%b,' % options) if at is None else (*at, options))
    return _spliced(call.body, edits)


def changed(text: bytes, changes: Changes) -> bytes:
    """An object with these changes: what it had stays in its place, what is new comes first."""
    found = list(members(text))
    values = {name.encode(): value for name, value in changes.items()}
    last = {member.name: index for index, member in enumerate(found)}
    goes = [
        member.name in values and (values[member.name] == GONE or last[member.name] != index)
        for index, member in enumerate(found)
    ]
    edits = [*_cuts(found, goes)]
    for member, gone in zip(found, goes, strict=True):
        if member.name in values and not gone:
            edits.append((member.start, member.end, values[member.name]))
    if new := [(name, value) for name, value in values.items() if value and name not in last]:
        edits.append(_insertion(text, new, alone=all(goes)))
    return _spliced(text, edits)


def usage_wish(call: Call) -> bytes:
    """The value of stream_options with include_usage set, and all else in it as the caller gave it."""
    if call.options_at is None:
        return b'{"include_usage":true}'
    start, end = call.options_at
    options = call.body[start:end]
    kept = [options[member.at : member.end] for member in members(options) if member.name != b"include_usage"]
    return b"{" + b",".join([*kept, b'"include_usage":true']) + b"}"


def _cuts(found: list[Member], goes: list[bool]) -> Iterable[_Edit]:
    """The members that go, each run of them with the one comma that goes with it."""
    cut: int | None = None
    end: int | None = None  # of the last member that stays
    for member, gone in zip(found, goes, strict=True):
        if gone:
            cut = member.at if cut is None else cut
            continue
        if cut is not None:
            yield cut, member.at, b""
        cut, end = None, member.end
    if cut is not None:
        yield cut if end is None else end, found[-1].end, b""


def _insertion(text: bytes, new: list[tuple[bytes, bytes]], *, alone: bool) -> _Edit:
    written = b",".join([b'"%b":%b' % member for member in new])
    return _first(text, written if alone else written + b",")


def _first(text: bytes, written: bytes) -> _Edit:
    """What comes before all that an object has."""
    at = text.index(b"{") + 1
    return at, at, written


def _spliced(text: bytes, edits: list[_Edit]) -> bytes:
    whole = memoryview(text)
    parts: list[bytes | memoryview] = []
    at = 0
    edits.sort()
    for start, end, new in edits:
        parts += (whole[at:start], new)
        at = end
    parts.append(whole[at:])
    return b"".join(parts)
