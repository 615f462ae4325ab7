"""Leads whenever it may: of several processes on one database, one reconciles, and another takes over where it falls.

A thread that asks for the lease, and while it has it keeps it and lets the work go on. What the work may still do once
the lease is lost is not decided here but by the fence in every write (`controlplane.store.leadership`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from controlplane.clusters.base import ClusterError
from controlplane.domain.errors import StoreError
from controlplane.store.leadership import Term, take
from controlplane.store.store import Store

log = logging.getLogger(__name__)
RENEWALS = 4  # in a lease

Work = Callable[[Term], AbstractContextManager[None]]  # entered to begin, left to stop


class Candidate:
    """Does `work` under the name `name` while it leads, from `start` to `stop`."""

    def __init__(self, store: Store, name: str, lease_s: float, work: Work) -> None:
        self._store, self._name, self._lease_s, self._work = store, name, lease_s, work
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)
        self.leads = False

    def start(self) -> None:
        """Begin to ask for the lease."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the work, if this process leads, and let another lead at once."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                term = take(self._store, self._name, self._lease_s)
                if term is not None:
                    self._lead(term)
            except (StoreError, ClusterError, OSError) as error:  # the store says once that it is away
                log.debug("nothing is led now: %s", error)
            except Exception:
                log.exception("what the leader does has failed; it is begun anew")
            self._stopping.wait(self._lease_s / RENEWALS)

    def _lead(self, term: Term) -> None:
        """Work until told to stop, or until another process leads."""
        log.info("leads", extra={"epoch": term.epoch, "holder": self._name})
        try:
            with self._work(term):
                self.leads = True
                while not self._stopping.wait(self._lease_s / RENEWALS):
                    if not self._renew(term):
                        log.warning("another process leads: stepping back", extra={"epoch": term.epoch})
                        return
        finally:
            self.leads = False
            term.end()

    def _renew(self, term: Term) -> bool:
        """Whether nobody else leads, as far as is known: while the database is away, nobody else can."""
        try:
            return term.renew()
        except StoreError as error:
            log.warning("the lease could not be renewed: %s", error)
            return True
