"""The reconciler: a thread that looks, decides and writes, again and again, from nothing but the store and the cluster.

Level-triggered: a hint that is missed costs a tick, never a state. It keeps no truth of its own, so it can be killed at
any instant; and while the cluster does not answer, it changes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace

from sqlalchemy import and_, or_, select

from controlplane.clusters.base import Cluster, ClusterError, ObservedJob
from controlplane.domain.errors import StoreError
from controlplane.domain.phases import LIVE, ON_CLUSTER, Phase
from controlplane.faults import fault
from controlplane.logfmt import about
from controlplane.reconcile.apply import apply, apply_simple
from controlplane.reconcile.decide import Decision, Look, Upstream, decide
from controlplane.reconcile.listener import Listener
from controlplane.reconcile.outbox import Site, Worker, on_cluster, void_leases
from controlplane.reconcile.pace import Pace
from controlplane.reconcile.witness import witnessed
from controlplane.store.store import Ledger
from controlplane.store.tables import Attempt, Outbox, Run
from controlplane.tracing import of_run

log = logging.getLogger(__name__)
HAVE_OBJECTS = ON_CLUSTER | {Phase.CANCELLING, Phase.SUSPENDING}
OUTBOX_S = 1.0  # of each look, at most, for the outbox
WHOLE_S = 120.0  # from one whole look to the next, at most
WHOLE_SHARE = 500.0  # else so many times what the last one, or the one before, took of a processor
REST_S, REST_SHARE = 0.5, 8.0  # after each look, at most; else so many times what it took: what comes is gathered
TOGETHER = 256  # decisions of one transaction
MOST_APART = 1000  # objects and runs that are looked at apart from the others
AT_A_TIME = 1000  # nodes of runs that are in memory with all that is stored of them
FOLLOW_UPS = 8  # decisions about one run in one look, at most


class Reconciler:
    """Reconciles one cluster. `step` is one look; `start` and `stop` run it in a thread of its own.

    Its runs are those `of` a further cluster, by name, or of the installation's own. `turn` is held while it decides
    what is begun next: several clusters' reconcilers share one, since sweeps and queues are not one cluster's.
    """

    def __init__(
        self,
        store: Ledger,
        cluster: Cluster,
        *,
        site: Site,
        of: str = "",
        turn: threading.Lock | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._cluster, self._clock = store, cluster, clock
        self._pace = pace or Pace()
        self._of, self._work, self._news = of, store.signals.work.wait(), store.signals.collect()
        self._worker = Worker(store, cluster, site, self._pace, of=of, turn=turn or threading.Lock())
        self._listener = Listener(cluster)
        self._absent: dict[str, int] = {}  # looks in a row that missed a live attempt's object
        self._seen: dict[str, ObservedJob] = {}  # by name, at the last look
        self._lost = True  # whether changes since the last whole look may be unknown
        self._alive, self._more, self._whole_at = True, False, float("-inf")
        self._took = 0.0  # of a processor, by the last whole look: the very first one has much to load
        self._strangers: set[str] = set()
        self._trouble: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"reconciler {of}".strip(), daemon=True)
        self._begun = False
        self._begin()

    def _begin(self) -> None:
        """Take up what another process, or a look that broke off, has begun."""
        void_leases(self._store, self._of)
        fault("leases voided")
        self._begun = True

    def start(self) -> None:
        """Begin to reconcile."""
        self._cluster.watch(self._work.set)
        self._work.set()
        self._thread.start()

    def stop(self) -> None:
        """End after the step at hand. The runs go on."""
        self._stopping.set()
        self._store.signals.work.leave(self._work)
        self._store.signals.forsake(self._news)
        self._work.set()
        if self._thread.is_alive():
            self._thread.join()
        self._worker.close()

    def step(self, *, whole: bool = True) -> bool:
        """One look, at everything that lives; whether anything does. Raises StoreUnavailable.

        Where it need not be `whole`, it is at what has changed in the store or on the cluster since the last one.
        """
        self._more = self._worker.work(self._clock, OUTBOX_S)  # a long outbox must not keep what runs from being seen
        if self._more:
            self._work.set()
        began, touched = time.thread_time(), self._news.take()
        whole, self._lost = whole or self._lost or touched is None, True  # until this look has come to its end
        try:
            observed = self._cluster.observe()
        except ClusterError as error:
            self._hear(str(error))
            return True
        self._hear(None)
        fault("cluster observed")
        jobs = {job.name: job for job in observed}
        names = {name for name, job in jobs.items() if self._seen.get(name) is not job and self._seen.get(name) != job}
        names |= (self._seen.keys() - jobs.keys()) | self._absent.keys()
        self._seen = jobs
        wanted, ours, several = set[str](), set[str](), 0
        before, self._absent = self._absent, {}
        for live in self._live() if whole else self._live(names, touched or set()):
            several += sum(run.phase != Phase.SUSPENDED for run, _ in live)
            there = {attempt.object_name for run, attempt in live if run.phase in HAVE_OBJECTS}
            self._absent |= {name: before.get(name, 0) + 1 for name in there - jobs.keys()}
            wanted |= there
            ours |= {attempt.object_name for _, attempt in live}
            self._look_at(live, jobs)
        left = (jobs.keys() if whole else jobs.keys() & names) - ours
        self._sweep([jobs[name] for name in left if not jobs[name].deleting])
        if whole:
            self._listener.keep(wanted)
            self._alive = several > 0
            last, self._took = self._took, time.thread_time() - began
            self._whole_at = time.monotonic() + min(WHOLE_S, WHOLE_SHARE * min(last, self._took))
        self._lost, self._alive = False, self._alive or bool(ours)
        return self._alive or self._outbox_waits()

    def _look_at(self, live: list[tuple[Run, Attempt]], jobs: dict[str, ObservedJob]) -> None:
        """Decide about these runs."""
        upstreams = self._upstreams(live)
        simple: list[tuple[Look, Decision]] = []
        for run, attempt in live:
            job = jobs.get(attempt.object_name)
            job = replace(job, pods=tuple(job.pods)) if job is not None else None  # they are read again and again
            self._reconcile_one(run, attempt, job, upstreams.get(run.after_id), simple)
        for first in range(0, len(simple), TOGETHER):
            some = simple[first : first + TOGETHER]
            with ExitStack() as traces:
                for look, _ in some:
                    traces.enter_context(of_run("reconcile", look.run.id, look.attempt.number))
                apply_simple(self._store, some)

    def _run(self) -> None:
        work, busy = self._work, True
        while not self._stopping.is_set():
            work.wait(self._pace.tick_s if busy else self._pace.idle_s)
            work.clear()
            began = time.monotonic()
            try:
                if not self._begun:
                    self._begin()
                busy = self.step(whole=began >= self._whole_at)
            except StoreError as error:
                log.warning("a look broke off; the next one begins anew: %s", error)
                busy, self._begun = True, False
                self._stopping.wait(self._pace.tick_s)
            except Exception:  # whatever it was, the next look starts from what is stored
                log.exception("a look failed; the next one follows")
                busy = True
                self._stopping.wait(self._pace.tick_s)
            if not self._more:  # what comes then is seen together
                self._stopping.wait(min(REST_S, REST_SHARE * (time.monotonic() - began)))

    def _live(
        self, names: set[str] | None = None, touched: Collection[str] = ()
    ) -> Iterator[list[tuple[Run, Attempt]]]:
        """Live runs, each with its present attempt: all, or those of objects and of runs, and who waits for these.

        A part at a time: what is stored of thousands of pods takes a kilobyte of memory each.
        """
        ours = and_(Run.phase.in_([*LIVE]), Run.cluster == self._of)
        if names is not None and len(names) + len(touched) <= MOST_APART:
            if not (names or touched):
                return
            ours = and_(ours, or_(Run.id.in_(self._runs_of(names) | {*touched}), Run.after_id.in_(touched)))
        with self._store.read() as session:
            found = session.execute(select(Run.id, Run.nodes).where(ours).order_by(Run.id)).all()
        for part in _parts([(row.id, row.nodes) for row in found]):
            wanted = select(Run, Attempt).join(Attempt, (Attempt.run_id == Run.id) & (Attempt.number == Run.attempt))
            wanted = wanted.where(Run.id.in_(part), Run.phase.in_([*LIVE])).order_by(Run.id)
            with self._store.read() as session:
                live = [(run, attempt) for run, attempt in session.execute(wanted)]
            yield live

    def _runs_of(self, names: set[str]) -> set[str]:
        with self._store.read() as session:
            return {*session.scalars(select(Attempt.run_id).where(Attempt.object_name.in_(names)))}

    def _upstreams(self, live: list[tuple[Run, Attempt]]) -> dict[str | None, Upstream]:
        """Those that queued runs come after, by their ids."""
        wanted = {run.after_id for run, _ in live if run.after_id is not None and run.phase == Phase.QUEUED}
        if not wanted:
            return {}
        with self._store.read() as session:
            rows = session.execute(select(Run.name, Run.id, Run.phase).where(Run.id.in_(wanted)))
            return {row.id: Upstream(*row) for row in rows}

    def _outbox_waits(self) -> bool:
        with self._store.read() as session:
            return session.scalar(select(Outbox.run_id).where(on_cluster(self._of)).limit(1)) is not None

    def _hear(self, trouble: str | None) -> None:
        """Say once that the cluster does not answer, and once that it does again."""
        if trouble is not None and self._trouble is None:
            log.warning("cluster %s does not answer, nothing is decided: %s", self._cluster.name, trouble)
        if trouble is None and self._trouble is not None:
            log.info("cluster %s answers again", self._cluster.name)
        self._trouble = trouble

    def _reconcile_one(
        self,
        run: Run,
        attempt: Attempt,
        job: ObservedJob | None,
        upstream: Upstream | None,
        simple: list[tuple[Look, Decision]],
    ) -> None:
        """One run's trouble is not another's; the store's is everyone's."""
        with about(run=run.id, attempt=attempt.number):
            try:
                self._reconcile(run, attempt, job, upstream, simple)
            except StoreError:
                raise
            except Exception:
                log.exception("it could not be reconciled; the next look tries again")

    def _reconcile(
        self,
        run: Run,
        attempt: Attempt,
        job: ObservedJob | None,
        upstream: Upstream | None,
        simple: list[tuple[Look, Decision]],
    ) -> None:
        """Decide about a run until nothing is left to decide on this observation; a `simple` decision is the last."""
        absent = self._absent.get(attempt.object_name, 0)
        for _ in range(FOLLOW_UPS):
            patience = self._pace.patience_s if self._worker.contended else None
            look = Look(run, attempt, job, absent, self._clock(), patience, self._listener.heard_at(attempt), upstream)
            if look.silent_s > look.longest_silence_s / 2:
                look = replace(look, heard_at=self._listener.listen(attempt, look.now))
            decision = decide(look)
            if decision is None:
                return
            if decision.simple:
                simple.append((look, decision))
                return
            with of_run("reconcile", run.id, attempt.number):
                valid = apply(self._store, self._pace, look, witnessed(self._cluster, look, decision))
            if not valid:
                return
            with self._store.read() as session:
                run = session.get_one(Run, run.id)
                attempt_now = session.get_one(Attempt, (run.id, run.attempt))
            if run.phase not in LIVE or attempt_now.number != attempt.number:
                return
            attempt = attempt_now

    def _sweep(self, jobs: list[ObservedJob]) -> None:
        """End objects whose attempt has ended, as after a creation that came late; leave strangers alone."""
        if not jobs:
            return
        wanted = select(Attempt.object_name, Attempt.finished_at)
        with self._store.read() as session:
            rows = session.execute(wanted.where(Attempt.object_name.in_([job.name for job in jobs]))).all()
        ends = {row.object_name: row.finished_at for row in rows}
        for job in jobs:
            if ends.get(job.name) is not None:
                self._end(job)
            elif job.name not in ends and job.name not in self._strangers:
                self._strangers.add(job.name)
                log.warning("object %s is of run %s, which is not in this store: left alone", job.name, job.run_id)

    def _end(self, job: ObservedJob) -> None:
        fault("leftover found")
        self._store.confirm()
        try:
            self._cluster.delete(job.name, job.uid)
        except ClusterError as error:
            log.warning("object %s could not be ended yet: %s", job.name, error)


def _parts(runs: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Runs, given with their nodes, in parts of so many nodes at most, or of one run."""
    part, several = list[str](), 0
    for run_id, nodes in runs:
        if part and several + nodes > AT_A_TIME:
            yield part
            part, several = [], 0
        part.append(run_id)
        several += nodes
    if part:
        yield part
