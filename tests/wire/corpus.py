"""Event streams that a framer must get right: what the standard allows, and what real engines sent."""

from pathlib import Path

CAPTURES = Path(__file__).parent.parent / "real" / "captures"

_CHUNK = '{"choices":[{"index":0,"delta":{"content":"%s"}}]}'

WRITTEN: dict[str, bytes] = {
    "plain": b'data: {"a":1}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n',
    "crlf": b'data: {"a":1}\r\n\r\ndata: {"b":2}\r\n\r\n',
    "cr": b'data: {"a":1}\r\rdata: {"b":2}\r\r',
    "mixed line ends": b"data: a\n\r\ndata: b\r\r\ndata: c\r\n\rdata: d\n\n\r\ndata: e\r\n\ndata: f\r\r",
    "a cr at last": b"data: a\n\ndata: b\r\n\ndata: c\n\r",
    "byte order mark": b"\xef\xbb\xbfdata: first\n\n\xef\xbb\xbfdata: no field\n\ndata: last\n\n",
    "comments": b": ping\n\ndata: a\n\n:\n\n: data: no\n: twice\n\ndata: b\n: within\n\n",
    "many data lines": b'data: {"a":\ndata: [1,\ndata:  2]}\n\ndata\ndata\n\ndata:\ndata: x\n\ndata:\n\n',
    "no space": b"data:a\n\ndata:  two\n\ndata:[DONE]\n\n",
    "other fields": b"event: x\nid: 1\nretry: 10\ndata: a\n\nid: 2\n\nevent: y\n\ndatax: no\ndata : no\nData: no\n\n",
    "blank lines": b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n\n",
    "not line ends": b"data: " + (_CHUNK % "\u2028\u2029\u0085\x0b\x0c").encode() + b"\n\n",
    "many bytes a character": b"data: " + (_CHUNK % "h\u00e9\u4f60\u597d\U0001f600").encode() + b"\n\n",
    "not utf-8": b"data: \xff\xfe\xe4\xbd\n\ndata: ok\n\n",
    "null": b"data: a\x00b\n\nid: \x00\n\n",
    "unfinished": b"data: a\n\ndata: never ended\n",
    "unfinished within a line": b"data: a\n\ndata: ne",
    "nothing": b"",
}
CAPTURED: dict[str, bytes] = {path.stem: path.read_bytes() for path in sorted(CAPTURES.glob("*.sse"))}
STREAMS = WRITTEN | CAPTURED
