"""The one writer: a thread that takes whatever writes are waiting and commits them together.

One fsync serves them all, and within this process no write waits for a lock. Where several kinds of writes meet, each
has a savepoint of its own, so one that fails takes nothing of the others with it. Writes of one kind may be done
together (`Writer.together`), which then costs little more than one of them. Callers block until their write is durable.
It knows no table.

Other processes may write too, where several share the store. A write that met theirs is done again, on what they left:
so a write says all it does in its function, and may be called more than once.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from controlplane.domain.errors import StoreUnavailable
from controlplane.faults import fault
from controlplane.store.signals import Signals
from controlplane.tracing import span

log = logging.getLogger(__name__)
T = TypeVar("T")
A = TypeVar("A")
LARGEST_GROUP = 64  # writes of one commit
GAP_S = 0.002  # how long one more is waited for, where as many came before: a group costs little more than one write
ENOUGH = 8  # are waited for: then one group is written while the next one's requests are read
TRIES = 4  # of a write that meets others' writes
MET = {"40001", "40P01"}  # SQLSTATEs: serialization failure, deadlock
AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)  # the database's trouble, not a statement's


class Transaction:
    """What a write works with: the `session`, and whom to tell once it is durable."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.touched: set[str] = set()
        self.work = False


class Tell(Protocol):
    """Tells other processes, within a transaction, what it will have changed."""

    def __call__(self, connection: Connection, run_ids: Collection[str], *, work: bool) -> None:
        """Tell of these runs, and whether the reconciler has something to do."""
        ...


@dataclass(frozen=True)
class _Job:
    """Writes of one kind: `write` takes what each of them is `of`, and gives each its result or its failure."""

    write: Callable[[Transaction, Sequence[Any]], Sequence[Any]]
    of: Sequence[Any]
    done: Sequence[Future[Any]]

    def one_by_one(self) -> list[_Job]:
        """The same writes, each by itself."""
        return [replace(self, of=[one], done=[done]) for one, done in zip(self.of, self.done, strict=True)]


_Answers = list[tuple["Future[Any]", Any, Transaction]]


class Writer:
    """Runs writes in a thread of its own until `close`."""

    def __init__(self, engine: Engine, signals: Signals, tell: Tell | None = None) -> None:
        self._engine = engine.execution_options(writer=True)
        self._signals, self._tell_others = signals, tell
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._closing, self._busy = threading.Lock(), threading.Lock()
        self._closed = False
        self._refused = False  # whether the last write was, by the database
        self._thread.start()

    def write(self, job: Callable[[Transaction], T]) -> T:
        """Run `job` in a transaction, and return its result once that is durable. Raises what it raises.

        Raises StoreUnavailable, with nothing written, where the database cannot be written. (Where it went away while
        it committed, nobody knows; what is repeated under an idempotency key is safe.)
        """

        def alone(transaction: Transaction, _: Sequence[None]) -> list[T | Exception]:
            return [job(transaction)]

        done: Future[T] = self.together(alone, None)
        with span("store write"):
            return done.result()

    def together(self, job: Callable[[Transaction, Sequence[A]], Sequence[T | Exception]], of: A) -> Future[T]:
        """As `write`, for what may be written with others of its kind: `job` is given what waits for it, in order.

        It returns for each what its future is to return or raise; what it raises itself, it raises for one alone.
        """
        done: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise StoreUnavailable("the control plane is shutting down")
            self._jobs.put(_Job(job, [of], [done]))
        return done

    @contextmanager
    def resting(self) -> Generator[None]:
        """Let every write wait for as long as this lasts."""
        with self._busy:
            yield

    def close(self) -> None:
        """Finish the writes that wait, and stop."""
        with self._closing:
            self._closed = True
            self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        before = 1  # a write that comes alone waits for nobody
        while (first := self._jobs.get()) is not None:
            group, more = self._group(first, before)
            before = len(group)
            with self._busy:  # who waits no more, as a client that has gone, has not asked
                self._commit([job for job in group if job.done[0].set_running_or_notify_cancel()])
            if not more:
                return

    def _group(self, first: _Job, before: int) -> tuple[list[_Job], bool]:
        """What waits now, and what comes soon of as many as `before`; and whether the writer goes on after it."""
        group = [first]
        while len(group) < LARGEST_GROUP:
            try:
                job = self._jobs.get(timeout=GAP_S) if len(group) < min(before, ENOUGH) else self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return group, False
            group.append(job)
        return group, True

    def _commit(self, group: list[_Job], tries: int = TRIES, *, guarded: bool = False) -> None:
        """Run the group's writes and commit them; then answer each caller.

        Writes of one kind are `guarded` by a savepoint, which costs as much as they do, only once they have failed.
        """
        if not group:
            return
        answers: _Answers = []
        jobs = _joined(group)
        try:
            with self._engine.begin() as connection:
                if len(jobs) == 1 and not guarded:
                    answers = _run_alone(connection, jobs[0])
                else:
                    answers = [answer for job in jobs for answer in _run(connection, job)]
                self._announce(connection, [transaction for _, _, transaction in answers])
                fault("write begun")
        except _Spoilt:
            self._commit(group, tries, guarded=True)
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, every caller must hear of it
            left = [job for job in group if not job.done[0].done()]
            if tries > 1 and _met(error):
                for job in left:
                    self._commit([job], tries - 1)
                return
            refusal = _refusal(error)
            self._say(refusal if isinstance(refusal, StoreUnavailable) else None)
            for job in left:
                job.done[0].set_exception(refusal)
            return
        fault("write committed")
        self._say(None)
        self._tell([transaction for _, _, transaction in answers])
        for done, result, _ in answers:
            done.set_exception(result) if isinstance(result, Exception) else done.set_result(result)

    def _say(self, refusal: StoreUnavailable | None) -> None:
        """Say that the database cannot be written, and that it can be again, once each."""
        if (refusal is not None) != self._refused:
            log.warning("%s", refusal or "the database can be written again")
        self._refused = refusal is not None

    def _announce(self, connection: Connection, transactions: list[Transaction]) -> None:
        run_ids, work = _news(transactions)
        if self._tell_others is not None and (run_ids or work):
            self._tell_others(connection, run_ids, work=work)

    def _tell(self, transactions: list[Transaction]) -> None:
        run_ids, work = _news(transactions)
        self._signals.touched(run_ids)
        if work:
            self._signals.work.set()


def _news(transactions: list[Transaction]) -> tuple[set[str], bool]:
    """Runs that were touched, and whether the reconciler has something to do."""
    return {run_id for one in transactions for run_id in one.touched}, any(one.work for one in transactions)


def _joined(group: Sequence[_Job]) -> list[_Job]:
    """The group's writes, those of one kind in one job."""
    kinds: dict[object, list[_Job]] = {}
    for job in group:
        kinds.setdefault(job.write, []).append(job)
    return [
        _Job(write, [job.of[0] for job in jobs], [job.done[0] for job in jobs])
        for jobs in kinds.values()
        for write in [jobs[0].write]
    ]


class _Spoilt(Exception):
    """A write has failed that had no savepoint: nothing of its transaction may stay."""


def _run_alone(connection: Connection, job: _Job) -> _Answers:
    """The only job of a transaction. Raises _Spoilt where a write of it fails."""
    with Session(connection, join_transaction_mode="rollback_only", expire_on_commit=False) as session:
        transaction = Transaction(session)
        try:
            results = job.write(transaction, job.of)
            session.flush()
        except AWAY:
            raise
        except Exception as error:
            raise _Spoilt from error
        session.commit()
    return [(done, result, transaction) for done, result in zip(job.done, results, strict=True)]


def _run(connection: Connection, job: _Job, tries: int = TRIES) -> _Answers:
    """One job under its savepoint. Of writes that failed, their callers alone hear; one that spoils others is alone."""
    session = Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
    transaction = Transaction(session)
    try:
        results = job.write(transaction, job.of)
        session.commit()
    except AWAY:
        with suppress(*AWAY):  # SQLite may have ended the whole transaction, and the savepoint with it
            session.close()
        raise
    except Exception as error:  # noqa: BLE001 - it belongs to the caller
        session.close()
        if len(job.done) > 1:
            return [answer for one in job.one_by_one() for answer in _run(connection, one)]
        if isinstance(error, IntegrityError) and tries > 1:  # another process was first: its rows are to be seen now
            return _run(connection, job, tries - 1)
        job.done[0].set_exception(error)
        return []
    session.close()
    return [(done, result, transaction) for done, result in zip(job.done, results, strict=True)]


def _met(error: Exception) -> bool:
    """Whether a write failed because it met another process's, and nothing else is wrong."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in MET


def _refusal(error: Exception) -> Exception:
    return unavailable("the database cannot be written", error) if isinstance(error, AWAY) else error


def unavailable(what: str, error: Exception) -> StoreUnavailable:
    """The database's trouble in one sentence, without what it was asked."""
    first = _first(error) if isinstance(error, OperationalError) else error
    told = str(getattr(first, "orig", None) or first).strip().partition("\n")[0]
    return StoreUnavailable(f"{what}: {told}")


def _first(error: OperationalError) -> OperationalError:
    """The trouble that began it: after a full disk, the missing savepoint is only what follows."""
    first, cause = error, error.__context__
    while cause is not None:
        first, cause = cause if isinstance(cause, OperationalError) else first, cause.__context__
    return first
