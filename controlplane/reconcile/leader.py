"""Leads whenever it may: of several processes on one database, one reconciles, and another takes over where it falls.

A thread that asks for the lease, and while it has it keeps it and lets the work go on. What the work may still do once
the lease is lost is not decided here but by the fence in every write (`controlplane.store.leadership`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

from controlplane.clusters.base import ClusterError
from controlplane.domain.errors import StoreError
from controlplane.reconcile.background import Background
from controlplane.store.leadership import Term, take
from controlplane.store.store import Store

log = logging.getLogger(__name__)
RENEWALS = 4  # in a lease

Work = Callable[[Term], AbstractContextManager[None]]  # entered to begin, left to stop


class Candidate(Background):
    """Does `work` under the name `name` while it leads, from `start` to `stop`, which lets another lead at once."""

    failed = "what the leader does has failed; it is begun anew"

    def __init__(self, store: Store, name: str, lease_s: float, work: Work) -> None:
        self._store, self._name, self._lease_s, self._work = store, name, lease_s, work
        self.idle_s = lease_s / RENEWALS
        self.leads = False
        super().__init__("leader")

    def turn(self) -> float:
        """See `Background.turn`: ask for the lease, and lead for as long as it is kept."""
        try:
            term = take(self._store, self._name, self._lease_s)
            if term is not None:
                self._lead(term)
        except (StoreError, ClusterError, OSError) as error:  # the store says once that it is away
            log.debug("nothing is led now: %s", error)
        return self.idle_s

    def _lead(self, term: Term) -> None:
        """Work until told to stop, or until another process leads."""
        log.info("leads", extra={"epoch": term.epoch, "holder": self._name})
        try:
            with self._work(term):
                self.leads = True
                while not self._stopping.wait(self.idle_s):
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
