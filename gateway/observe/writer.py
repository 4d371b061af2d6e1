"""How log lines leave without ever making a caller wait.

A pipe that nobody reads fills up, and a write to it blocks: so lines are handed to a thread of their own, through a
buffer with an end. What does not fit is dropped and counted. Must not know what is in a line.
"""

import os
import select
import threading


class LineWriter:
    """Takes lines from any thread at once, and writes them to a file descriptor in batches.

    `capacity`: bytes that may wait; beyond it lines are dropped, and counted in `dropped`.
    """

    def __init__(self, descriptor: int, *, capacity: int = 8 << 20) -> None:
        self._descriptor = descriptor
        self._capacity = capacity
        # One that its own thread may take twice: a finalizer that logs can run anywhere, in here too.
        self._lock = threading.RLock()
        self._lines: list[bytes] = []
        self._waiting = 0
        self._wake = threading.Event()
        self._closing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def interactive(self) -> bool:
        """Whether a person sees the lines as they are written."""
        return os.isatty(self._descriptor)

    def msg(self, line: bytes) -> None:
        """Write `line`, soon. Never waits."""
        size = len(line) + 1
        with self._lock:
            if self._closing or self._waiting + size > self._capacity:
                self.dropped += 1
                return
            self._waiting += size
            self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    # structlog calls the method that has the level's name
    log = debug = info = warning = warn = error = critical = exception = msg

    def close(self, patience: float = 2.0) -> None:
        """Write what waits, for at most `patience` seconds, and take no more."""
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join(patience)

    def _run(self) -> None:
        pause = threading.Event()
        while not self._closing:
            self._wake.wait()
            if not self._closing:
                pause.wait(0.02)  # one write for all the lines of a moment
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        written = self._write(b"".join([line + b"\n" for line in lines]))
        with self._lock:
            for line in lines:
                size = len(line) + 1
                self._waiting -= size
                self.dropped += written < size
                written -= size

    def _write(self, data: bytes) -> int:
        """Write all of it, however long that takes; returns how much was, which is less where the reader has gone."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                self._wait_for_room()
            except OSError:
                break
        return len(data) - len(left)

    def _wait_for_room(self) -> None:
        """Somebody who shares the descriptor has made it one that does not wait."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll()
