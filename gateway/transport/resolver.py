"""Threads to look names up in, which nobody waits for at the end of the process.

`concurrent.futures.ThreadPoolExecutor` has its threads joined when the interpreter exits, so that a name server that does
not answer would keep a gateway alive that has nothing left to do. Must not know what is run in the threads.
"""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(Executor):
    """At most `limit` threads, begun when there is work and ended when there is none. What is cancelled does not wait."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._threads = 0
        self._lock = threading.Lock()
        self._waiting: dict[Future[Any], Callable[[], Any]] = {}  # in the order they came

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a thread, now or in turn."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting[future] = lambda: fn(*args, **kwargs)
            begins = self._threads < self._limit
            self._threads += begins
        future.add_done_callback(self._forget)
        if begins:
            self._begin(future)
        return future

    def _begin(self, future: Future[Any]) -> None:
        try:
            threading.Thread(target=self._work, name="resolver", daemon=True).start()
        except RuntimeError:  # no more threads are to be had
            with self._lock:
                self._threads -= 1
            if not self._threads and not future.done():  # nobody would ever come to it
                future.set_exception(OSError(errno.EAGAIN, "no thread to resolve a name in"))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Cancel what waits, if told to; never wait for what runs."""
        if cancel_futures:
            with self._lock:
                waiting = list(self._waiting)
            for future in waiting:
                future.cancel()

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._waiting.pop(future, None)

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._lock:
            if not self._waiting:
                self._threads -= 1
                return None
            future = next(iter(self._waiting))
            return future, self._waiting.pop(future)

    def _work(self) -> None:
        while (work := self._next()) is not None:
            future, call = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is for whoever waits
                future.set_exception(error)
