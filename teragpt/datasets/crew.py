"""Threads that do work beside the caller's, and do not keep a process alive that wants to end.

Why: the standard library's executors are waited for at a process's end, and one that reads from a store which does not
answer would use up the seconds that a checkpoint needs. It must not know what the work is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Crew:
    """Up to `size` threads, which are started by the first work that there is, and once more in a forked process."""

    def __init__(self, size: int, name: str) -> None:
        self.size, self.name = size, name
        self.started = 0  # by the process of this id
        self.starting = threading.Lock()
        self.queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def do(self, work: Callable[[], T]) -> Future[T]:
        """Have work done, in the order in which it is given; its future can be cancelled until it has begun."""
        with self.starting:
            if self.started != os.getpid():
                self.started, self.queue = os.getpid(), SimpleQueue()
                for number in range(self.size):
                    threading.Thread(target=self.serve, daemon=True, name=f"{self.name}-{number}").start()
        future: Future[T] = Future()
        self.queue.put((future, work))
        return future

    def serve(self) -> None:
        """Do work for ever."""
        queue = self.queue
        while True:
            serve_one(*queue.get())


def serve_one(future: Future[Any], work: Callable[[], Any]) -> None:
    """Do one piece of work. A function of its own, so that an idle thread keeps nothing alive."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        future.set_exception(error)
