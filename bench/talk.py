"""What the load asks, and what must come back: a request prepared once, and the checks that every answer has to pass."""

import json
from typing import Any

from bench.upstream import END_OF_ANSWER, MARK

KEY = "sk-bench-key-of-a-service-0123456789"
_QUESTION = 'What does the line "limit = 20" do, and why?\n\tTell it briefly: the reader is in a hurry. '


class WrongAnswerError(Exception):
    """A contender answered something else than what the upstream said."""


def request(port: int, script: str, prompt_bytes: int) -> bytes:
    """A chat request, head and body: a talk of some turns, `prompt_bytes` long in all."""
    turns = max(2, min(20, prompt_bytes // 2000))
    content = (_QUESTION * (prompt_bytes // len(_QUESTION) + 1))[: prompt_bytes // turns - 80]
    talk = [{"role": "assistant" if turn % 2 else "user", "content": content} for turn in range(turns)]
    call: dict[str, Any] = {"model": f"bench-{script}", "messages": talk, "temperature": 0.2, "max_tokens": 200}
    if script != "plain":
        call |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(call, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\naccept: application/json\r\n"
        f"user-agent: bench/1.0\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def check_plain(status: int, body: bytes) -> None:
    """The upstream's whole answer, whatever a contender has done to its JSON."""
    if status != 200 or END_OF_ANSWER not in body or not body.rstrip().endswith(b"}"):
        raise WrongAnswerError(f"status {status}, body {body[:300]!r}")


def check_stream(status: int, body: bytes, chunks: int) -> None:
    """Every chunk, the usage that was asked for, and the end."""
    found = body.count(MARK)
    if status != 200 or found != chunks or b'"total_tokens"' not in body or b"data: [DONE]" not in body:
        raise WrongAnswerError(f"status {status}, {found} of {chunks} chunks, end {body[-300:]!r}")


def check_silent(status: int, body: bytes) -> None:
    """A silent stream must not end."""
    raise WrongAnswerError(f"a silent stream ended: status {status}, body {body[:300]!r}")
