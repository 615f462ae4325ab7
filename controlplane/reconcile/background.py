"""Work that nobody waits for, in a thread of its own: a turn, a rest, the next turn, whatever became of the last."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from controlplane.domain.errors import StoreError


class Background(ABC):
    """Takes turns from `start` to `stop`. A turn that fails is said in the words `later` or `failed`, by its cause."""

    idle_s: float
    later = "nothing is done now"
    failed: str

    def __init__(self, name: str) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the turn at hand."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @abstractmethod
    def turn(self) -> float:
        """Do a part of the work; how long to rest then, in seconds. Raises StoreError."""

    def _run(self) -> None:
        log, rest = logging.getLogger(type(self).__module__), 0.0
        while not self._stopping.wait(rest):
            try:
                rest = self.turn()
            except StoreError as error:
                log.warning("%s: %s", self.later, error)
                rest = self.idle_s
            except Exception:
                log.exception(self.failed)
                rest = self.idle_s


class Chore(Background):
    """Some `work` every so many seconds."""

    def __init__(self, name: str, work: Callable[[], None], every_s: float) -> None:
        self._work, self.idle_s = work, every_s
        self.later, self.failed = f"{name} is seen to later", f"{name} could not be seen to"
        super().__init__(name)

    def turn(self) -> float:
        """See `Background.turn`."""
        self._work()
        return self.idle_s
