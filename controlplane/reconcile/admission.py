"""Who of those whose object is due has to wait all the same, and for what: docs/lifecycle.md, "Waiting to be begun".

Read anew from the store before each batch of the outbox, so that nothing is forgotten or counted twice by a kill.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from sqlalchemy import ColumnElement, and_, func, not_, or_, select
from sqlalchemy.orm import Session, aliased

from controlplane.clusters.base import Cluster
from controlplane.domain.chains import WAITS_FOR_RUN, waits_for_run
from controlplane.domain.phases import HELD, TURN, Phase
from controlplane.domain.queues import QueueState, closed
from controlplane.domain.sweeps import WAITS_FOR_SWEEP, waits_for_sweep
from controlplane.reconcile.line import UNDER_WAY, Held, beyond_quotas, in_line
from controlplane.store.moves import CREATE, move
from controlplane.store.store import Ledger
from controlplane.store.tables import Outbox, Queue, Run, Sweep
from controlplane.store.writer import Transaction

UPSTREAM = aliased(Run)
BATCH = 100  # runs of one transaction that are told what they wait for


class Admission:
    """Keeps the outbox from runs `of` a cluster that wait. `contended` after each `hold`: whether a line has formed."""

    def __init__(self, store: Ledger, cluster: Cluster, of: str) -> None:
        self._store, self._cluster, self._ours = store, cluster, Run.cluster == of
        self.contended = False

    def hold(self, session: Session, due: ColumnElement[bool], now: float) -> list[ColumnElement[bool]]:
        """What keeps the outbox from rows that are `due` and still have to wait. Tells their runs for what they do."""
        held = [*queue_is_closed(session, due)]
        held += upstream_goes_on(session, self._ours, {one.run_id for one in held})
        held += beyond_parallelism(session, self._ours, {one.run_id for one in held})
        traits = self._cluster.traits()
        elsewhere = {one.run_id for one in held}
        held += beyond_quotas(session, due, self._ours, elsewhere, traits.quotas, traits.namespace)
        elsewhere = {one.run_id for one in held}
        line = [] if traits.gang else in_line(session, due, self._ours, elsewhere, queues=traits.queues)
        self.contended = bool(line)
        held += line
        self._tell([one for one in held if one.news], now)
        kept = [one.run_id for one in held]
        return [not_(and_(Outbox.op == CREATE, Outbox.run_id.in_(kept)))] if kept else []

    def _tell(self, news: Sequence[Held], now: float) -> None:
        for first in range(0, len(news), BATCH):
            self._store.write(partial(_told, news=news[first : first + BATCH], now=now))


def queue_is_closed(session: Session, due: ColumnElement[bool]) -> Iterator[Held]:
    """Runs whose queue is paused and whose next attempt is `due`, or whose queue drains and that are not begun."""
    waiting = (
        select(Run.id, Run.phase, Run.message, Queue.name, Queue.state, Queue.note)
        .join(Queue, Queue.name == Run.queue)
        .join(Outbox, (Outbox.run_id == Run.id) & (Outbox.op == CREATE))
        .where(
            due,
            or_(
                and_(Queue.state == QueueState.PAUSED, Run.phase.in_([Phase.QUEUED, Phase.RESTARTING])),
                and_(Queue.state == QueueState.DRAINING, Run.phase == Phase.QUEUED),
            ),
        )
    )
    for one in session.execute(waiting):
        told = closed(one.name, one.state, one.note)
        yield Held(one.id, one.phase, told.reason, told.words, news=one.message != told.words)


def upstream_goes_on(session: Session, ours: ColumnElement[bool], elsewhere: Collection[str]) -> Iterator[Held]:
    """Queued runs of `ours` whose upstream has not succeeded; where it has failed, `decide` ends them."""
    waiting = (
        select(Run.id, Run.message, UPSTREAM.name, UPSTREAM.id.label("upstream"))
        .join(UPSTREAM, UPSTREAM.id == Run.after_id)
        .where(ours, Run.phase == Phase.QUEUED, UPSTREAM.phase != Phase.SUCCEEDED)
    )
    for one in session.execute(waiting):
        if one.id in elsewhere:
            continue
        told = waits_for_run(one.name, one.upstream)
        yield Held(one.id, Phase.QUEUED, WAITS_FOR_RUN, told, news=one.message != told)


def beyond_parallelism(session: Session, ours: ColumnElement[bool], elsewhere: Collection[str]) -> Iterator[Held]:
    """Queued runs of sweeps for which there is no room yet, the last points first; who waits `elsewhere` takes none.

    Room is taken by what goes on any cluster, and given to `ours`.
    """
    under_way = (
        select(Run.sweep_id, func.count().label("several"))
        .where(Run.phase.in_([*UNDER_WAY]), Run.sweep_id.is_not(None))
        .group_by(Run.sweep_id)
        .subquery()
    )
    waiting = (
        select(Run.id, Run.sweep_id, Run.message, Sweep.name, Sweep.parallelism, under_way.c.several)
        .join(Sweep, Sweep.id == Run.sweep_id)
        .outerjoin(under_way, under_way.c.sweep_id == Run.sweep_id)
        .where(ours, Run.phase == Phase.QUEUED)
        .order_by(Run.sweep_id, Run.sweep_point)
    )
    room: dict[str, int] = {}
    for one in session.execute(waiting):
        if one.id in elsewhere:
            continue
        left = room.setdefault(str(one.sweep_id), one.parallelism - (one.several or 0))
        room[str(one.sweep_id)] = left - 1
        if left <= 0:
            told = waits_for_sweep(one.name, one.parallelism)
            yield Held(one.id, Phase.QUEUED, WAITS_FOR_SWEEP, told, news=one.message != told)


def _told(transaction: Transaction, news: Sequence[Held], now: float) -> None:
    for one in news:
        transition = HELD if one.phase == Phase.RESTARTING else TURN
        move(transaction, one.run_id, transition, now, reason=one.reason, message=one.message)
