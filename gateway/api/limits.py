"""How much, and how slowly, a caller may send or take: the listening side's settings.

Every limit is per connection or per request, and each has one refusal (see heads.py and protocol.py for which). The
defaults are right for production; tests shorten them. Must not know how a limit is kept.
"""

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on one caller's connection. Sizes in bytes, times in seconds.

    `head_bytes`: request line and header fields together; over it 431.
    `head_fields`: header fields in one head; over it 431.
    `url_bytes`: the request target; over it 414.
    `head_seconds`: from the connection, or from the first byte of a later head, to the head's end; over it 408.
    `idle_seconds`: a kept-alive connection without a request; over it the connection is closed without a word.
    `body_bytes`: request body without its framing; over it 413, without reading it where `content-length` says so.
    `body_seconds`: from the head's end to the body's; over it 408.
    `body_rate`: bytes per second that a body must have made on average, once `body_grace_seconds` are over; under it 408.
    `stall_seconds`: a caller that takes nothing of what waits for it for this long (at most a tenth more) is cut off.
    `answer_rate`: bytes per second that a caller must take on average while an answer waits for it, after `stall_seconds`.
    `write_buffer_bytes`: most that waits in user space for a slow reader; `send()` waits beyond it.
    `pipelined`: requests that may wait behind the one in flight; whatever was read beyond them is thrown away, and the
    connection is closed after the last answer.
    `linger_seconds`, `linger_bytes`: after an answer that ends the connection before the caller has sent everything,
    how long and how much is still read and thrown away, so that the caller gets the answer and not a reset.
    """

    head_bytes: int = 32 * 1024
    head_fields: int = 100
    url_bytes: int = 8 * 1024
    head_seconds: float = 10.0
    idle_seconds: float = 75.0
    body_bytes: int = 10 * 1024 * 1024
    body_seconds: float = 60.0
    body_rate: float = 1024.0
    body_grace_seconds: float = 10.0
    stall_seconds: float = 30.0
    answer_rate: float = 1024.0
    write_buffer_bytes: int = 256 * 1024
    pipelined: int = 8
    linger_seconds: float = 2.0
    linger_bytes: int = 32 * 1024 * 1024
