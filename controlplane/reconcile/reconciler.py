"""The reconciler: a thread that looks, decides and writes, again and again, from nothing but the store and the cluster.

Level-triggered: a hint that is missed costs a tick, never a state. It keeps no truth of its own, so it can be killed at
any instant; and while the cluster does not answer, it changes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeAlias

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import defer
from sqlalchemy.sql.base import ExecutableOption

from controlplane.clusters.base import Cluster, ClusterError, ObservedJob, ObservedPod
from controlplane.clusters.pods import changed, not_running
from controlplane.domain.errors import StoreError
from controlplane.domain.phases import LIVE, ON_CLUSTER, Phase
from controlplane.domain.queues import DEFAULT_QUEUE, Closed, QueueState, closed
from controlplane.faults import fault
from controlplane.logfmt import about
from controlplane.reconcile.apply import apply, apply_simple
from controlplane.reconcile.decide import Decision, Look, Upstream, decide
from controlplane.reconcile.hang_stacks import with_stacks
from controlplane.reconcile.listener import Listener
from controlplane.reconcile.outbox import Site, Worker, on_cluster, void_leases
from controlplane.reconcile.pace import Pace
from controlplane.reconcile.retries import Retries
from controlplane.store.store import Ledger
from controlplane.store.tables import Attempt, Outbox, Queue, Run
from controlplane.tracing import of_run

log = logging.getLogger(__name__)
News: TypeAlias = Mapping[int, ObservedPod]
PRESENT = and_(Attempt.run_id == Run.id, Attempt.number == Run.attempt)
HAVE_OBJECTS = ON_CLUSTER | {Phase.CANCELLING, Phase.SUSPENDING}
OUTBOX_S = 1.0  # of each look, at most, for the outbox
WHOLE_S = 120.0  # from one whole look to the next, at most
REREAD_S = 600.0  # after which what was stored last is not trusted to be so
WHOLE_SHARE = 500.0  # else so many times what the last one, or the one before, took of a processor
REST_S, REST_SHARE = 0.4, 8.0  # after each look, at most; else so many times what it took: what comes is gathered
TOGETHER = 256  # decisions of one transaction
MOST_APART = 1000  # objects and runs that are looked at apart from the others
AT_A_TIME = 256  # nodes of runs that are in memory with all that is stored of their pods
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
        self._retries = Retries(self._pace)
        self._absent: dict[str, int] = {}  # looks in a row that missed a live attempt's object
        self._seen: dict[str, ObservedJob] = {}  # by name, at the last look
        self._stored: dict[str, Sequence[ObservedPod]] = {}  # by object, its pods as they were last stored
        self._lost = True  # whether changes since the last whole look may be unknown
        self._alive, self._more = True, False
        self._whole_at = self._reread_at = float("-inf")
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
        if self._lost or touched is None or time.monotonic() >= self._reread_at:
            whole = True
            self._stored.clear()  # all that is stored is read anew
            self._reread_at = time.monotonic() + REREAD_S
        self._lost = True  # until this look has come to its end
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
        wanted, ours, lived, several = set[str](), set[str](), set[str](), 0
        before, self._absent = self._absent, {}
        due = self._retries.due()
        for live, news in self._live(jobs, names, None if whole or touched is None else {*touched, *due}):
            several += sum(run.phase != Phase.SUSPENDED for run, _ in live)
            there = {attempt.object_name for run, attempt in live if run.phase in HAVE_OBJECTS}
            self._absent |= {name: before.get(name, 0) + 1 for name in there - jobs.keys()}
            wanted |= there
            ours |= {attempt.object_name for _, attempt in live}
            lived |= {run.id for run, _ in live}
            self._look_at(live, jobs, news)
        for run_id in due - lived:
            self._retries.forget(run_id)
        left = (jobs.keys() if whole else jobs.keys() & names) - ours
        self._sweep([jobs[name] for name in left if not jobs[name].deleting])
        if whole:
            self._listener.keep(wanted)
            self._stored = {name: pods for name, pods in self._stored.items() if name in wanted}
            self._alive = several > 0
            last, self._took = self._took, time.thread_time() - began
            self._whole_at = time.monotonic() + min(WHOLE_S, WHOLE_SHARE * min(last, self._took))
        self._lost, self._alive = False, self._alive or bool(ours)
        return self._alive or self._outbox_waits()

    def _look_at(self, live: list[tuple[Run, Attempt]], jobs: dict[str, ObservedJob], news: dict[str, News]) -> None:
        """Decide about these runs."""
        upstreams, shut = self._upstreams(live), self._shut(live)
        simple: list[tuple[Look, Decision]] = []
        for run, attempt in live:
            job = jobs.get(attempt.object_name)
            known = news.get(attempt.object_name)
            if known is None and job is not None:
                job = replace(job, pods=tuple(job.pods))  # they are read again and again
            absent, upstream = self._absent.get(attempt.object_name, 0), upstreams.get(run.after_id)
            look = Look(run, attempt, job, absent, 0.0, upstream=upstream, closed=shut.get(run.id), news=known)
            self._reconcile_one(look, simple)
        for first in range(0, len(simple), TOGETHER):
            some = simple[first : first + TOGETHER]
            with ExitStack() as traces:
                for look, _ in some:
                    traces.enter_context(of_run("reconcile", look.run.id, look.attempt.number))
                done = apply_simple(self._store, some)
            for look, _ in some:
                self._stored.pop(look.attempt.object_name, None)
            for look in done:
                self._remember(look)

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
        self, jobs: Mapping[str, ObservedJob], names: set[str], touched: Collection[str] | None
    ) -> Iterator[tuple[list[tuple[Run, Attempt]], dict[str, News]]]:
        """Live runs, each with its present attempt: all, or those of objects and of runs, and who waits for these.

        Those of the objects come first. With them comes by object what is new of their pods, where that is known: what
        is stored of these is not read. The others come a part at a time: that takes a kilobyte of memory for each pod.
        """
        ours = and_(Run.phase.in_([*LIVE]), Run.cluster == self._of)
        if touched is not None and len(names) + len(touched) <= MOST_APART:
            if not (names or touched):
                return
            ours = and_(ours, or_(Run.id.in_(self._runs_of(names) | {*touched}), Run.after_id.in_(touched)))
        wanted = select(Run.nodes, Attempt.object_name).join(Attempt, PRESENT).where(ours).order_by(Run.id)
        with self._store.read() as session:
            found = sorted(session.execute(wanted), key=lambda row: row.object_name not in names)
        news = {row.object_name: self._news_of(row.object_name, jobs.get(row.object_name)) for row in found}
        known = {name: new for name, new in news.items() if new is not None}
        for part in _parts([(name, 1) for name in known], TOGETHER):
            yield self._read(part, defer(Attempt.pods, raiseload=True)), known
        rest = [(row.object_name, row.nodes) for row in found if row.object_name not in known]
        for part in _parts(rest, AT_A_TIME):
            yield self._read(part), {}

    def _read(self, names: Collection[str], *options: ExecutableOption) -> list[tuple[Run, Attempt]]:
        """The live runs whose present attempt has one of these objects."""
        wanted = select(Run, Attempt).join(Attempt, PRESENT).order_by(Run.id).options(*options)
        wanted = wanted.where(Attempt.object_name.in_(names), Run.phase.in_([*LIVE]))
        with self._store.read() as session:
            return [(run, attempt) for run, attempt in session.execute(wanted)]

    def _news_of(self, name: str, job: ObservedJob | None) -> News | None:
        """The pods of an object that are not as they are stored, by place.

        None where that is not known, and where more follows from how they are than that they wait or run.
        """
        before = self._stored.get(name)
        if before is None or job is None or job.deleting or job.gone or len(before) != len(job.pods):
            return None
        if any(pod.phase != "Pending" for pod in not_running(job.pods)):
            return None
        news = changed(job.pods, before)
        same = all(_identity(pod) == _identity(before[place]) for place, pod in news.items())
        return news if same else None

    def _remember(self, look: Look) -> None:
        """The pods are stored as they were seen in this look."""
        if look.goes_on:
            self._stored[look.attempt.object_name] = self._seen[look.attempt.object_name].pods

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

    def _shut(self, live: list[tuple[Run, Attempt]]) -> dict[str, Closed]:
        """Why their queues would not begin them now, of runs whose pods have no places yet, by id."""
        pending = [run for run, _ in live if run.phase == Phase.PENDING]
        if not pending:
            return {}
        with self._store.read() as session:
            rows = {row.name: row for row in session.scalars(select(Queue).where(Queue.state != QueueState.OPEN))}
        held = {run.id: rows[run.queue] for run in pending if run.queue in rows}
        begun = {run.id for run in pending if run.started_at is not None}
        return {
            run_id: closed(row.name, row.state, row.note)
            for run_id, row in held.items()
            if row.state == QueueState.PAUSED or run_id not in begun
        }

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

    def _reconcile_one(self, look: Look, simple: list[tuple[Look, Decision]]) -> None:
        """One run's trouble is not another's; the store's is everyone's."""
        with about(run=look.run.id, attempt=look.attempt.number):
            try:
                self._reconcile(look, simple)
            except StoreError:
                raise
            except Exception:
                log.exception(
                    "it could not be reconciled; it is tried again in %.0f s", self._retries.failed(look.run.id)
                )
                self._stored.pop(look.attempt.object_name, None)
            else:
                self._retries.forget(look.run.id)

    def _reconcile(self, look: Look, simple: list[tuple[Look, Decision]]) -> None:
        """Decide about a run until nothing is left to decide on this observation; a `simple` decision is the last."""
        name, now = look.attempt.object_name, look if look.news is None or look.goes_on else self._reread(look)
        for _ in range(FOLLOW_UPS):
            if now is None:
                return
            look = replace(
                now, now=self._clock(), patience_s=self._patience_s(now.run), heard_at=self._listener.heard_at(name)
            )
            if look.silent_s > look.longest_silence_s / 2:
                look = replace(look, heard_at=self._listener.listen(name, look.job, look.now))
            decision = decide(look)
            if decision is None:
                self._remember(look)
                return
            if decision.simple:
                simple.append((look, decision))
                return
            self._stored.pop(name, None)
            if look.news is None:
                with of_run("reconcile", look.run.id, look.attempt.number):
                    if not apply(self._store, self._pace, look, with_stacks(self._cluster, look, decision)):
                        return
            now = self._reread(look)

    def _patience_s(self, run: Run) -> float | None:
        """How long it may seek places for its pods: without end, unless others stand behind it in our own line."""
        ours = run.queue == DEFAULT_QUEUE or not self._cluster.traits().queues
        return self._pace.patience_s if ours and self._worker.contended else None

    def _reread(self, look: Look) -> Look | None:
        """The look with all that is stored of the run now; None where that has ended or is at another attempt."""
        found = self._read([look.attempt.object_name])
        if not found:
            return None
        job = replace(look.job, pods=tuple(look.job.pods)) if look.job is not None else None
        return replace(look, run=found[0][0], attempt=found[0][1], job=job, news=None)

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


def _identity(pod: ObservedPod) -> tuple[str, str, int]:
    """What is told or judged by more than the pod itself where it changes."""
    return pod.name, pod.uid, pod.log_from


def _parts(objects: Iterable[tuple[str, int]], most: int) -> Iterator[list[str]]:
    """Objects, given with how many each counts for, in parts of so many at most, or of one object."""
    part, several = list[str](), 0
    for name, counted in objects:
        if part and several + counted > most:
            yield part
            part, several = [], 0
        part.append(name)
        several += counted
    if part:
        yield part
