"""Lines leave through a real pipe, whatever its reader does."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from gateway.observe.writer import LineWriter


@dataclass
class Pipe:
    """A pipe, and what was read from it."""

    reading: int
    writing: int
    read: bytearray = field(default_factory=bytearray)
    threads: list[threading.Thread] = field(default_factory=list)

    def drain(self) -> None:
        """Read all from now on, beside the test."""

        def run() -> None:
            while data := os.read(self.reading, 1 << 16):
                self.read.extend(data)

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def lines(self) -> list[bytes]:
        """All that was written, when the writer is closed."""
        os.close(self.writing)
        self.writing = -1
        for thread in self.threads:
            thread.join()
        assert self.read.endswith(b"\n")
        return bytes(self.read).splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe(*os.pipe())
    yield made
    for descriptor in (made.reading, made.writing):
        if descriptor >= 0:
            os.close(descriptor)


def test_lines_arrive_in_order_and_closing_writes_what_waits(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing)
    for number in range(100):
        writer.msg(b"line %d" % number)
    writer.close()
    pipe.drain()
    assert pipe.lines() == [b"line %d" % number for number in range(100)]
    assert writer.dropped == 0


def test_a_pipe_that_nobody_reads_never_makes_a_caller_wait_and_what_is_dropped_is_counted(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, capacity=100_000)
    for number in range(1000):
        writer.msg(b"%0999d" % number)
    assert writer.dropped >= 1000 - 100 - 66  # what may wait, and what a pipe holds
    pipe.drain()
    writer.close(patience=60)
    lines = pipe.lines()
    assert all(len(line) == 999 for line in lines)
    assert len(lines) + writer.dropped == 1000


def test_there_is_room_again_when_the_reader_comes_back(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing, capacity=10)
    pipe.drain()
    for number in range(4):
        writer.msg(b"line %d" % number)
        while writer._waiting:
            pass
    writer.close()
    assert len(pipe.lines()) == 4
    assert writer.dropped == 0


def test_a_closed_pipe_is_survived_and_all_lines_count_as_dropped(pipe: Pipe) -> None:
    os.close(pipe.reading)
    pipe.reading = -1
    writer = LineWriter(pipe.writing)
    for number in range(10):
        writer.msg(b"line %d" % number)
    writer.close()
    assert writer.dropped == 10
    assert not writer._thread.is_alive()


def test_a_reader_that_leaves_within_a_batch_has_read_what_is_not_counted_as_dropped(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing)
    for _ in range(1000):
        writer.msg(b"x" * 999)
    assert os.read(pipe.reading, 5000) != b""
    os.close(pipe.reading)
    pipe.reading = -1
    writer.close()
    assert 0 < writer.dropped < 1000
    assert writer._waiting == 0


def test_closing_waits_no_longer_than_it_is_told_and_takes_no_more_lines(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing)
    writer.msg(b"x" * 1_000_000)
    writer.close(patience=0)
    writer.msg(b"late")
    assert writer.dropped == 1
    os.close(pipe.reading)  # which frees the thread
    pipe.reading = -1
    writer._thread.join()
    assert writer.dropped == 2


def test_lines_from_many_threads_arrive_once_and_in_each_ones_order(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing)
    pipe.drain()

    def write(name: int) -> None:
        for number in range(2000):
            writer.msg(b"%d %d" % (name, number))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close(patience=60)
    lines = pipe.lines()
    for name in range(8):
        own = [line for line in lines if line.startswith(b"%d " % name)]
        assert own == [b"%d %d" % (name, number) for number in range(2000)]
    assert (len(lines), writer.dropped, writer._waiting) == (16_000, 0, 0)


def test_a_finalizer_that_logs_while_its_thread_is_logging_does_not_wait_for_itself(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing)
    with writer._lock:
        writer.msg(b"from within")
    writer.close()
    pipe.drain()
    assert pipe.lines() == [b"from within"]


def test_a_descriptor_that_does_not_wait_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    writer = LineWriter(pipe.writing)
    for number in range(1000):
        writer.msg(b"%0999d" % number)
    pipe.drain()
    writer.close(patience=60)
    assert len(pipe.lines()) == 1000
    assert writer.dropped == 0


def test_a_pipe_is_no_person(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing)
    assert not writer.interactive
    writer.close()
