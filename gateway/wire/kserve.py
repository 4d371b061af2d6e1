"""The few messages of KServe's gRPC protocol that text needs, as bytes, and their likeness to the generate extension's JSON.

Written by hand: five messages of a protocol that does not change are less than a code generator's output and the library
that it needs. What goes in and comes out are the members of the JSON bodies that Triton's HTTP side has, by the rules by
which it maps them to tensors. Must not know gRPC, models or time.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_FORMATS = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP32": "f",
    "FP64": "d",
}
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_WIDTHS = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}


class Tensor(NamedTuple):
    """What a model says of one of its inputs. `rank`: its dimensions, that of the batch included."""

    datatype: str
    rank: int


class Response(NamedTuple):
    """One message of a stream: an error's words, or else members as the generate extension would have sent them."""

    error: str
    members: dict[str, Any]


def named(name: str) -> bytes:
    """A request for something about the model called `name`: its metadata, or whether it is ready."""
    return _text(1, name)


def read_flag(message: bytes) -> bool:
    """The answer to whether something is live or ready. Raises ValueError on what is no message."""
    return any(number == 1 and bool(value) for number, value in _fields(message))


def read_inputs(message: bytes) -> dict[str, Tensor]:
    """The inputs in a model's metadata, by name. Raises ValueError on what is no message."""
    inputs: dict[str, Tensor] = {}
    for described in _of(message, 4):
        (name,) = _of(described, 1) or (b"",)
        (datatype,) = _of(described, 2) or (b"",)
        inputs[name.decode()] = Tensor(datatype.decode(), len(_shape(described)))
    return inputs


def infer_request(model: str, members: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> bytes:
    """A request for an inference: members that are inputs of the model become tensors, all others parameters.

    Raises ValueError for a value that its tensor can't take, or that can't be a parameter.
    """
    message = [_text(1, model)]
    raw: list[bytes] = []
    for name, value in {**members, **(members.get("parameters") or {})}.items():
        if name == "id":
            message.append(_text(3, str(value)))
        elif name in inputs:
            tensor, values = inputs[name], value if isinstance(value, list) else [value]
            message.append(_described(name, tensor, len(values)))
            raw.append(_field(7, _packed(name, tensor.datatype, values)))
        elif name != "parameters":
            message.append(_field(4, _text(1, name) + _field(2, _parameter(name, value))))
    return b"".join([*message, *raw])


def read_response(message: bytes) -> Response:
    """One message of a stream. Raises ValueError on what is no message."""
    (error,) = _of(message, 1) or (b"",)
    members: dict[str, Any] = {}
    for response in _of(message, 2):
        for number, member in ((1, "model_name"), (2, "model_version"), (3, "id")):
            for text in _of(response, number):
                members[member] = text.decode("utf-8", "replace")
        for output, raw in zip(_of(response, 5), _of(response, 6), strict=False):
            (name,), (datatype,) = _of(output, 1), _of(output, 2)
            values = _unpacked(datatype.decode(), raw)
            members[name.decode()] = values[0] if len(values) == 1 else values
    return Response(error.decode("utf-8", "replace"), members)


# Tensors.


def _described(name: str, tensor: Tensor, size: int) -> bytes:
    shape = [1] * (tensor.rank - 1) + [size]
    dimensions = b"".join(map(_varint, shape))
    return _field(5, _text(1, name) + _text(2, tensor.datatype) + _field(3, dimensions))


def _packed(name: str, datatype: str, values: Sequence[Any]) -> bytes:
    try:
        if datatype == "BYTES":
            texts = [value.encode() for value in values]
            return b"".join([struct.pack("<I", len(text)) + text for text in texts])
        return struct.pack(f"<{len(values)}{_FORMATS[datatype]}", *values)
    except (struct.error, KeyError, AttributeError, UnicodeError, OverflowError):
        raise ValueError(f"the value of {name} is not {datatype}") from None


def _unpacked(datatype: str, raw: bytes) -> list[Any]:
    if datatype == "BYTES":
        return list(_texts(raw))
    if datatype not in _FORMATS:
        return []
    return [value for (value,) in struct.iter_unpack(f"<{_FORMATS[datatype]}", raw[: _whole(datatype, raw)])]


def _whole(datatype: str, raw: bytes) -> int:
    return len(raw) - len(raw) % struct.calcsize(_FORMATS[datatype])


def _texts(raw: bytes) -> Iterator[str]:
    at = 0
    while at + 4 <= len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        yield raw[at + 4 : at + 4 + size].decode("utf-8", "replace")
        at += 4 + size


def _parameter(name: str, value: object) -> bytes:
    if isinstance(value, bool):
        return b"\x08" + _varint(int(value))
    if isinstance(value, int):
        return b"\x10" + _varint(value)
    if isinstance(value, str):
        return _text(3, value)
    raise ValueError(f"{name} is no tensor, and can't be a parameter")


# Protocol buffers.


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _of(message: bytes, number: int) -> list[bytes]:
    """The fields with this number that hold bytes."""
    return [value for found, value in _fields(message) if found == number and isinstance(value, bytes)]


def _shape(described: bytes) -> list[int]:
    """Dimensions may come packed, or one by one."""
    sizes: list[int] = []
    for number, value in _fields(described):
        if number == 3:
            sizes += [value] if isinstance(value, int) else _varints(value)
    return sizes


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        yield value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, sort = key >> 3, key & 7
        if sort == _VARINT:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if sort == _BYTES:
            size, at = _read_varint(message, at)
        elif sort in _WIDTHS:
            size = _WIDTHS[sort]
        else:
            raise ValueError("not a message")
        if at + size > len(message):
            raise ValueError("a message cut short")
        yield number, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a message cut short")
