"""The synchronous client: carries over what `calls` says, and knows nothing of what it means."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import httpx

from controlplane.client import calls
from controlplane.client.errors import ApiError, Unreachable, refusal
from controlplane.client.frames import Library, frame_of
from controlplane.client.messages import Messages, ServerEvent
from controlplane.client.method import Method
from controlplane.client.patience import Tries
from controlplane.client.progress import Show, screen
from controlplane.client.requests import Call, Download, Feed, Pages
from controlplane.client.wire import (
    LOOK_EVERY_S,
    PATIENCE_S,
    PIECE_BYTES,
    STREAM_PATIENCE_S,
    Deadline,
    options,
    request,
)
from controlplane.replies import TERMINAL, Event, Run

P = ParamSpec("P")
T = TypeVar("T")


class Carrier:
    """Connections to the API at `url`. Everything raises Unreachable where nobody answers, ApiError where it refuses.

    `token` is sent as a bearer token. `timeout_s` bounds every call but streams and files. A call that may be sent
    again is, for `patience_s` seconds; a stream is connected anew for `stream_patience_s`, and resumes where it was.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        *,
        timeout_s: float = 30.0,
        patience_s: float = PATIENCE_S,
        stream_patience_s: float = STREAM_PATIENCE_S,
    ) -> None:
        self.url = url.rstrip("/")
        self._patience_s, self._stream_patience_s = patience_s, stream_patience_s
        self._http = httpx.Client(**options(self.url, token, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def send(self, call: Call[T], patience_s: float | None = None) -> T:
        """The call's reply. It is tried for `patience_s` seconds (the client's, unless given) if it may be."""
        tries = Tries(self.url, self._patience_s if patience_s is None else patience_s, repeats=call.repeats)
        while True:
            try:
                response = self._http.send(request(self._http, call))
                if response.is_success or response.status_code in call.fine:
                    return call.read(response)
                pause = tries.pause(refusal(response))
            except httpx.TransportError as error:
                pause = tries.pause(error)
            time.sleep(pause)

    def pages(self, pages: Pages[T]) -> Iterator[T]:
        """What is on the pages, fetched as it is wanted."""
        while (call := pages.next()) is not None:
            yield from pages.take(self.send(call))

    def follow(self, feed: Feed[T]) -> Iterator[T]:
        """What a stream tells until its end, over as many connections as it takes."""
        tries, after = Tries(self.url, self._stream_patience_s), feed.after
        while True:
            try:
                for message in self._connect(feed, after, tries):
                    if message.event == "end":
                        return
                    after = message.id or after
                    yield from feed.read(message.data)
                pause = tries.next()
            except (httpx.TransportError, ApiError) as error:
                pause = tries.pause(error)
            time.sleep(pause)

    def _connect(self, feed: Feed[Any], after: str | None, tries: Tries) -> Iterator[ServerEvent]:
        response = self._http.send(request(self._http, feed, after), stream=True)
        with closing(response):
            if not response.is_success:
                response.read()
                raise refusal(response)
            messages = Messages()
            for line in response.iter_lines():
                tries.succeeded()
                if message := messages.line(line):
                    yield message

    def download(self, what: Download) -> Iterator[bytes]:
        """A file in pieces."""
        try:
            response = self._http.send(request(self._http, what), stream=True)
            with closing(response):
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                yield from response.iter_bytes(PIECE_BYTES)
        except httpx.TransportError as error:
            raise Unreachable(self.url, error) from error

    def wait(
        self, run: str, show: Show | None = None, *, until: Collection[str] = TERMINAL, timeout_s: float | None = None
    ) -> Run:
        """The run once its phase is one of `until`; on the way there it is given to `show` twice a second.

        Outlives a minute without an answer. Raises TimeoutError after `timeout_s` seconds.
        """
        deadline = Deadline(run, timeout_s)
        while True:
            now = self.send(calls.run(run), STREAM_PATIENCE_S)
            if show:
                show(now)
            if now["phase"] in until:
                return now
            deadline.check(now["phase"])
            time.sleep(LOOK_EVERY_S)


def _call(build: Callable[P, Call[T]]) -> Method[Carrier, P, T]:
    return Method(build, Carrier.send)


def _list(build: Callable[P, Pages[T]]) -> Method[Carrier, P, Iterator[T]]:
    return Method(build, Carrier.pages)


def _feed(build: Callable[P, Feed[T]]) -> Method[Carrier, P, Iterator[T]]:
    return Method(build, Carrier.follow)


def _file(build: Callable[P, Download]) -> Method[Carrier, P, Iterator[bytes]]:
    return Method(build, Carrier.download)


class Client(Carrier):
    """The API at `url`, one method an operation (its parameters and words: `controlplane.client.calls`).

    Use it as a context manager, or call `close`. `submit` and `handle` give a run as an object with methods.
    """

    ready = _call(calls.ready)
    sizes = _call(calls.sizes)
    plan = _call(calls.plan)
    measured = _call(calls.measured)
    all_measured = _call(calls.all_measured)
    create = _call(calls.create)
    preview = _call(calls.preview)
    runs = _list(calls.runs)
    run = _call(calls.run)
    cancel = _call(calls.cancel)
    suspend = _call(calls.suspend)
    resume = _call(calls.resume)
    retry = _call(calls.retry)
    clone = _call(calls.clone)
    change = _call(calls.change)
    delete = _call(calls.delete)
    deleted = _list(calls.deleted)
    restore_run = _call(calls.restore_run)
    remains = _call(calls.remains)
    purge = _call(calls.purge)
    create_sweep = _call(calls.create_sweep)
    sweeps = _list(calls.sweeps)
    sweep = _call(calls.sweep)
    cancel_sweep = _call(calls.cancel_sweep)
    queues = _call(calls.queues)
    change_queue = _call(calls.change_queue)
    task = _call(calls.task)
    prepare = _call(calls.prepare)
    fetch = _file(calls.fetch)
    attempts = _call(calls.attempts)
    pods = _call(calls.pods)
    manifest = _call(calls.manifest)
    explain = _call(calls.explain)
    checkpoints = _call(calls.checkpoints)
    stacks = _call(calls.stacks)
    save = _call(calls.save)
    events = _call(calls.events)
    stream_events = _feed(calls.stream_events)
    metrics = _call(calls.metrics)
    stream_metrics = _feed(calls.stream_metrics)
    logs = _call(calls.logs)
    search_logs = _list(calls.search_logs)
    stream_logs = _feed(calls.stream_logs)
    stream_log_lines = _feed(calls.stream_log_lines)
    usage = _call(calls.usage)
    notifications = _call(calls.notifications)
    clusters = _call(calls.clusters)
    store = _call(calls.store)
    backup = _file(calls.backup)
    vacuum = _call(calls.vacuum)

    def submit(self, spec: Mapping[str, Any], idempotency_key: str | None = None) -> RunHandle:
        """Create a run, as `create`, and take hold of it."""
        return self.handle(self.create(spec, idempotency_key)["id"])

    def handle(self, run: str) -> RunHandle:
        """Take hold of a run by its id, or by its name while it lives."""
        return RunHandle(self, self.run(run)["id"])


class RunHandle:
    """One run of a client. `id` is its id; everything else is asked of the API when it is called."""

    def __init__(self, client: Client, run_id: str) -> None:
        self.id = run_id
        self._client = client

    def __repr__(self) -> str:
        return f"RunHandle({self.id!r} at {self._client.url})"

    def get(self) -> Run:
        """The run as it is now."""
        return self._client.run(self.id)

    def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> Run:
        """The run as it ended, well or not; `progress` shows it on stdout. Raises TimeoutError after `timeout_s`."""
        with screen() if progress else nullcontext() as show:
            return self._client.wait(self.id, show, timeout_s=timeout_s)

    def logs(
        self, *, follow: bool = False, rank: int = 0, attempt: int | None = None, tail: int | None = None
    ) -> Iterator[str]:
        """A rank's lines: those of the newest attempt, or with `follow` those to come too, until the run has ended."""
        if follow:
            return self._client.stream_logs(self.id, rank=rank, attempt=attempt, tail=tail)
        return iter(self._client.logs(self.id, rank=rank, attempt=attempt, tail=tail).split("\n")[:-1])

    def events(self, *, follow: bool = False) -> Iterator[Event]:
        """Its events, oldest first; with `follow` those to come too, until the run has ended."""
        return self._client.stream_events(self.id) if follow else iter(self._client.events(self.id))

    def metrics(
        self, *, keys: Sequence[str] = (), downsample: int | None = None, library: Library | None = None
    ) -> Any:
        """Its curve as a frame of pandas or polars, whichever is installed, else as a list of rows (`frames`)."""
        return frame_of(self._client.metrics(self.id, keys=keys, downsample=downsample), library)

    def cancel(self) -> Run:
        """Ask for its end."""
        return self._client.cancel(self.id)

    def save(self) -> Run:
        """Ask for a checkpoint now; it goes on."""
        return self._client.save(self.id)

    def suspend(self) -> Run:
        """Let it stop for now."""
        return self._client.suspend(self.id)

    def resume(self) -> Run:
        """Let it go on."""
        return self._client.resume(self.id)

    def retry(self) -> RunHandle:
        """A new run that goes on from its last checkpoint."""
        return RunHandle(self._client, self._client.retry(self.id)["id"])
