"""Works the outbox off: leases rows, asks the cluster with no transaction open, and stores what came of it.

Everything here may be cut off at any point and begun again: creations go under a deterministic name and are adopted
when they turn out to be done, deletions of what is gone succeed.
"""

from __future__ import annotations

import logging
import secrets
import threading
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, or_, select, update
from sqlalchemy.orm import Session, aliased, undefer

from controlplane.clusters.base import Cluster, NameConflict, Rejected, Unavailable
from controlplane.domain.phases import REFUSED, SUBMIT, SUBMITTED, UNREACHABLE, Desired
from controlplane.domain.resolve import ResolvedRun
from controlplane.faults import fault
from controlplane.logfmt import about
from controlplane.reconcile.admission import Admission
from controlplane.reconcile.pace import Pace
from controlplane.render import render, secret_of
from controlplane.store.moves import CREATE, get_attempt, get_run, move, settle
from controlplane.store.store import Ledger
from controlplane.store.tables import Attempt, Outbox, Run
from controlplane.store.writer import Transaction
from controlplane.submission import attempt_of
from controlplane.tracing import of_run

log = logging.getLogger(__name__)
NODE_FAULTS = frozenset({"NodeLost", "Shutdown"})
MOST_AVOIDED = 10
BATCH = 16  # rows leased at once: one commit serves them all


@dataclass(frozen=True)
class Site:
    """Where pods find the control plane (`url`), the `image` that they run, the `queue` of runs that name none."""

    url: str
    image: str
    queue: str = ""


def void_leases(store: Ledger, cluster: str) -> None:
    """Forget the leases of a process that is gone. Only for who reconciles this cluster, and works none off now."""
    voided = update(Outbox).where(on_cluster(cluster)).values(lease=None, leased_until=None)
    store.write(lambda transaction: transaction.session.connection().execute(voided))


def on_cluster(name: str) -> ColumnElement[bool]:
    """Whether an outbox row is of a run on this further cluster, or, where that is empty, on the installation's own."""
    run = aliased(Run)
    return exists().where(run.id == Outbox.run_id, run.cluster == name)


class Worker:
    """Works off what is due on one cluster, which is the installation's own or the further one that runs are `of`."""

    def __init__(
        self, store: Ledger, cluster: Cluster, site: Site, pace: Pace, *, of: str, turn: threading.Lock
    ) -> None:
        self._store, self._cluster, self._site, self._pace = store, cluster, site, pace
        self._of, self._turn = of, turn
        self._admission = Admission(store, cluster, of)

    @property
    def contended(self) -> bool:
        """Whether runs wait for another one to find its places."""
        return self._admission.contended

    def work(self, now: float) -> bool:
        """Work off one batch; whether there may be more. Raises StoreUnavailable."""
        with self._turn:
            leased = self._leased(now)
        for row in leased:
            with about(run=row.run_id, attempt=row.attempt), of_run(f"outbox {row.op}", row.run_id, row.attempt):
                self._create(row, now) if row.op == CREATE else self._delete(row, now)
        return len(leased) == BATCH

    def _leased(self, now: float) -> list[Outbox]:
        """The next rows, taken from all others."""
        with self._store.read() as session:
            free = or_(Outbox.leased_until.is_(None), Outbox.leased_until < now)
            longest = max(self._pace.longest_backoff_s, self._pace.longest_submit_backoff_s)
            ripe = or_(Outbox.due_at <= now, Outbox.due_at > now + longest)  # that far ahead: the clock was set back
            due = and_(ripe, on_cluster(self._of))
            if session.scalar(select(Outbox.run_id).where(due, free).limit(1)) is None:
                self._admission.contended = False
                return []
            wanted = select(Outbox).where(due, free, *self._admission.hold(session, due, now))
            rows = session.scalars(wanted.order_by(Outbox.due_at).limit(BATCH)).all()
        if not rows:
            return []
        leased = self._store.write(lambda transaction: self._lease(transaction, [*rows], now))
        fault("rows leased")
        return leased

    def _lease(self, transaction: Transaction, rows: list[Outbox], now: float) -> list[Outbox]:
        """Take those rows that are still free. A creation is taken only as transition 1: no cancel came before it."""
        return [row for row in rows if self._take(transaction, row, now)]

    def _take(self, transaction: Transaction, row: Outbox, now: float) -> bool:
        if row.op == CREATE:
            if not move(transaction, row.run_id, SUBMIT, now):
                return False
            attempt = get_attempt(transaction, row.run_id, row.attempt)
            attempt.phase = SUBMIT.target
            if attempt.resumed_from is None:
                attempt.resumed_from = _left_by_upstream(transaction.session, row.run_id)
        fault("row taken")
        row.lease, row.leased_until = secrets.token_hex(8), now + self._pace.lease_s
        taken = transaction.session.connection().execute(
            update(Outbox)
            .where(*_this(row), or_(Outbox.leased_until.is_(None), Outbox.leased_until < now))
            .values(lease=row.lease, leased_until=row.leased_until)
        )
        return taken.rowcount == 1

    def _create(self, row: Outbox, now: float) -> None:
        with self._store.read() as session:
            run = session.get_one(Run, row.run_id, options=[undefer(Run.resolved)])
            priority = session.get_one(Attempt, (row.run_id, row.attempt)).priority
            avoid = _bad_nodes(session, run.id)
        traits = self._cluster.traits()
        try:
            attempt = attempt_of(
                run.id,
                row.object_name,
                row.attempt,
                ResolvedRun.from_json(run.resolved),
                spec_hash=run.spec_hash,
                url=self._site.url,
                image=self._site.image,
                queue=self._site.queue,
                priority=priority,
                namespace=traits.namespace,
                audience=traits.audience,
                avoid_nodes=avoid,
                token=row.token or "",
            )
            manifest = render(attempt)
            fault("object rendered")
            self._store.confirm()
            uid = self._cluster.create(manifest, secret_of(attempt))
        except Unavailable as error:
            self._put_off(row, str(error), now)
        except (Rejected, NameConflict, ValueError) as error:
            reason = "NameConflict" if isinstance(error, NameConflict) else "ManifestRejected"
            message = str(error)
            fault("object refused")
            self._store.write(lambda transaction: _refused(transaction, row, reason, message, now))
        else:
            fault("object made")
            self._store.write(lambda transaction: _created(transaction, row, uid, now))
            fault("object stored")

    def _delete(self, row: Outbox, now: float) -> None:
        self._store.confirm()
        try:
            self._cluster.delete(row.object_name, row.uid)
        except Unavailable as error:
            self._put_off(row, str(error), now)
            return
        fault("object ended")
        self._store.write(lambda transaction: settle(transaction, row.run_id, row.attempt, row.op, row.lease or ""))
        fault("end stored")

    def _put_off(self, row: Outbox, message: str, now: float) -> None:
        log.warning("%s of %s is put off: %s", row.op, row.object_name, message)
        due_at = now + self._pace.submit_backoff(row.tries)
        fault("row put off")
        self._store.write(lambda transaction: _returned(transaction, row, message, now, due_at))


def _bad_nodes(session: Session, run_id: str) -> tuple[str, ...]:
    """Nodes that were lost under earlier attempts of this run, the last ones first, as many as a manifest may name."""
    earlier = session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number.desc()))
    lost = [pod["node"] for one in earlier for pod in one.pods if pod.get("node") and pod["reason"] in NODE_FAULTS]
    return tuple(dict.fromkeys(lost))[:MOST_AVOIDED]


def _left_by_upstream(session: Session, run_id: str) -> int | None:
    """The step at which a run starts that comes after another one."""
    upstream = aliased(Run)
    wanted = select(upstream.checkpoint_step).join(Run, Run.after_id == upstream.id).where(Run.id == run_id)
    return session.scalar(wanted)


def _created(transaction: Transaction, row: Outbox, uid: str, now: float) -> None:
    """Transition 3."""
    if not settle(transaction, row.run_id, row.attempt, row.op, row.lease or ""):
        return
    attempt = get_attempt(transaction, row.run_id, row.attempt)
    attempt.uid, attempt.submitted_at, attempt.phase = uid, now, SUBMITTED.target
    transaction.session.flush()
    move(transaction, row.run_id, SUBMITTED, now)


def _returned(transaction: Transaction, row: Outbox, message: str, now: float, due_at: float) -> None:
    """Transition 2: the row is due again later; that fails nothing."""
    transaction.session.connection().execute(
        update(Outbox)
        .where(*_this(row), Outbox.lease == row.lease)
        .values(lease=None, leased_until=None, tries=row.tries + 1, due_at=due_at)
    )
    if row.op == CREATE:
        move(transaction, row.run_id, UNREACHABLE, now, reason="ClusterUnreachable", message=message)


def _refused(transaction: Transaction, row: Outbox, reason: str, message: str, now: float) -> None:
    """Transition 4; a run whose cancel came first goes on to be cancelled."""
    if not settle(transaction, row.run_id, row.attempt, row.op, row.lease or ""):
        return
    attempt = get_attempt(transaction, row.run_id, row.attempt)
    attempt.reason, attempt.message = reason, message
    if get_run(transaction, row.run_id).desired == Desired.RUNNING:
        attempt.phase, attempt.finished_at = REFUSED.target, now
    transaction.session.flush()
    move(transaction, row.run_id, REFUSED, now, reason=reason, message=message)


def _this(row: Outbox) -> tuple[ColumnElement[bool], ...]:
    return Outbox.run_id == row.run_id, Outbox.attempt == row.attempt, Outbox.op == row.op
