"""Works the outbox off: leases rows, asks the cluster with no transaction open, and stores what came of it.

Everything here may be cut off at any point and begun again: creations go under a deterministic name and are adopted
when they turn out to be done, deletions of what is gone succeed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, exists, or_, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from controlplane.clusters.base import Cluster, NameConflict, Rejected, Unavailable
from controlplane.domain.errors import StoreError
from controlplane.domain.phases import REFUSED, UNREACHABLE, Desired
from controlplane.domain.resolve import ResolvedRun
from controlplane.faults import fault
from controlplane.logfmt import about
from controlplane.reconcile.admission import Admission
from controlplane.reconcile.leases import lease, submitted
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
AT_ONCE = 4  # rows worked off at the same time, where a whole batch waits
BATCH = 64  # rows leased at once: one commit serves them all
OWNER = aliased(Run)  # of an outbox row; to make an alias of so many columns takes longer than to ask
STORED_S = 2.0  # for how long what came of rows may be gathered before it is stored


@dataclass(frozen=True)
class Site:
    """Where pods find the control plane (`url`), the `image` that they run, the `queue` of runs that name none."""

    url: str
    image: str
    queue: str = ""


class _Facts(NamedTuple):
    """What a stored run's object is made of."""

    resolved: dict[str, Any]
    spec_hash: str
    priority: str | None
    avoid: tuple[str, ...]


def void_leases(store: Ledger, cluster: str) -> None:
    """Forget the leases of a process that is gone. Only for who reconciles this cluster, and works none off now."""
    voided = update(Outbox).where(on_cluster(cluster)).values(lease=None, leased_until=None)
    store.write(lambda transaction: transaction.session.connection().execute(voided))


def on_cluster(name: str) -> ColumnElement[bool]:
    """Whether an outbox row is of a run on this further cluster, or, where that is empty, on the installation's own."""
    return exists().where(OWNER.id == Outbox.run_id, OWNER.cluster == name)


class Worker:
    """Works off what is due on one cluster, which is the installation's own or the further one that runs are `of`."""

    def __init__(
        self, store: Ledger, cluster: Cluster, site: Site, pace: Pace, *, of: str, turn: threading.Lock
    ) -> None:
        self._store, self._cluster, self._site, self._pace = store, cluster, site, pace
        self._of, self._turn = of, turn
        self._admission = Admission(store, cluster, of)
        self._pool = ThreadPoolExecutor(AT_ONCE, f"outbox {of}".strip())

    @property
    def contended(self) -> bool:
        """Whether runs wait for another one to find its places."""
        return self._admission.contended

    def work(self, clock: Callable[[], float], longest_s: float) -> bool:
        """Work off what is due, batch by batch, for so long at most; whether there may be more.

        Few rows go one by one, in their order. Of a whole batch several are asked for at the same time, while the next
        one is leased. Raises StoreUnavailable.
        """
        end, under_way = time.monotonic() + longest_s, deque[Future[None]]()
        try:
            while True:
                now = clock()
                with self._turn:
                    leased = self._leased(now)
                more = len(leased) == BATCH
                if not (more or under_way):
                    self._work_off(leased, now)
                    return False
                for lane in range(AT_ONCE):
                    under_way.append(self._pool.submit(self._work_off, leased[lane::AT_ONCE], now))
                while len(under_way) > AT_ONCE:
                    under_way.popleft().result()
                if not more or time.monotonic() > end:
                    return more
        finally:
            wait(under_way)
            for one in under_way:
                one.result()

    def close(self) -> None:
        """End the threads that ask at the same time."""
        self._pool.shutdown()

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
        leased = self._store.write(lambda transaction: lease(transaction, [*rows], now, now + self._pace.lease_s))
        fault("rows leased")
        return leased

    def _work_off(self, rows: Sequence[Outbox], now: float) -> None:
        """One row after the other; what was made is stored together."""
        facts = self._facts([row for row in rows if row.op == CREATE])
        made, since = list[tuple[Outbox, str]](), time.monotonic()
        for row in rows:
            with about(run=row.run_id, attempt=row.attempt), of_run(f"outbox {row.op}", row.run_id, row.attempt):
                if (uid := self._ask(row, facts, now)) is not None:
                    made.append((row, uid))
                    if len(rows) == 1:  # so that the run's trace has it
                        self._made(made, now)
                        made = []
            if time.monotonic() - since > STORED_S:
                self._made(made, now)
                made, since = [], time.monotonic()
        self._made(made, now)

    def _ask(self, row: Outbox, facts: Mapping[str, _Facts], now: float) -> str | None:
        """Ask the cluster for what the row says; the uid of an object that was made. One row's trouble is its own."""
        try:
            if row.op == CREATE:
                return self._create(row, facts[row.run_id], now)
            self._delete(row, now)
        except StoreError:
            raise
        except Exception:
            log.exception("%s of %s failed", row.op, row.object_name)
            self._put_off(row, None, now)
        return None

    def _made(self, made: Sequence[tuple[Outbox, str]], now: float) -> None:
        if made:
            self._store.write(lambda transaction: submitted(transaction, made, now))
            fault("object stored")

    def _facts(self, rows: Sequence[Outbox]) -> dict[str, _Facts]:
        """What the objects of these rows are made of, by run."""
        wanted = select(Run.id, Run.resolved, Run.spec_hash, Attempt.priority).join(Attempt, Attempt.run_id == Run.id)
        at = tuple_(Attempt.run_id, Attempt.number).in_([(row.run_id, row.attempt) for row in rows])
        again = [row.run_id for row in rows if row.attempt > 1]
        if not rows:
            return {}
        with self._store.read() as session:
            bad = {run_id: _bad_nodes(session, run_id) for run_id in again}
            found = session.connection().execute(wanted.where(at)).all()
        return {one.id: _Facts(one.resolved, one.spec_hash, one.priority, bad.get(one.id, ())) for one in found}

    def _create(self, row: Outbox, facts: _Facts, now: float) -> str | None:
        """Make the row's object; its uid, None where it could not be made, which is stored then."""
        traits = self._cluster.traits()
        try:
            attempt = attempt_of(
                row.run_id,
                row.object_name,
                row.attempt,
                ResolvedRun.from_json(facts.resolved),
                spec_hash=facts.spec_hash,
                url=self._site.url,
                image=self._site.image,
                queue=self._site.queue,
                priority=facts.priority,
                namespace=traits.namespace,
                audience=traits.audience,
                avoid_nodes=facts.avoid,
                token=row.token or "",
            )
            manifest = render(attempt)
            fault("object rendered")
            self._store.confirm()
            if attempt.pod_overrides and attempt.kind != "Job":
                self._cluster.dry_run(manifest)  # what its schema does not say of pods, its operator would learn alone
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
            return uid
        return None

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

    def _put_off(self, row: Outbox, message: str | None, now: float) -> None:
        """Ask again later; `message`: what the cluster said, None where that is not why."""
        log.warning("%s of %s is put off: %s", row.op, row.object_name, message or "see above")
        due_at = now + self._pace.submit_backoff(row.tries)
        fault("row put off")
        self._store.write(lambda transaction: _returned(transaction, row, message, now, due_at))


def _bad_nodes(session: Session, run_id: str) -> tuple[str, ...]:
    """Nodes that were lost under earlier attempts of this run, the last ones first, as many as a manifest may name."""
    earlier = session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number.desc()))
    lost = [pod["node"] for one in earlier for pod in one.pods if pod.get("node") and pod["reason"] in NODE_FAULTS]
    return tuple(dict.fromkeys(lost))[:MOST_AVOIDED]


def _returned(transaction: Transaction, row: Outbox, message: str | None, now: float, due_at: float) -> None:
    """Transition 2: the row is due again later; that fails nothing."""
    transaction.session.connection().execute(
        update(Outbox)
        .where(
            Outbox.run_id == row.run_id, Outbox.attempt == row.attempt, Outbox.op == row.op, Outbox.lease == row.lease
        )
        .values(lease=None, leased_until=None, tries=row.tries + 1, due_at=due_at)
    )
    if row.op == CREATE and message is not None:
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
