"""The asynchronous client: the same calls as `sync`, carried over without a thread. Blocks nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, nullcontext
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


class AsyncCarrier:
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
        self._http = httpx.AsyncClient(**options(self.url, token, timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def send(self, call: Call[T], patience_s: float | None = None) -> T:
        """The call's reply. It is tried for `patience_s` seconds (the client's, unless given) if it may be."""
        tries = Tries(self.url, self._patience_s if patience_s is None else patience_s, repeats=call.repeats)
        while True:
            try:
                response = await self._http.send(request(self._http, call))
                if response.is_success or response.status_code in call.fine:
                    return call.read(response)
                pause = tries.pause(refusal(response))
            except httpx.TransportError as error:
                pause = tries.pause(error)
            await asyncio.sleep(pause)

    async def pages(self, pages: Pages[T]) -> AsyncIterator[T]:
        """What is on the pages, fetched as it is wanted."""
        while (call := pages.next()) is not None:
            for each in pages.take(await self.send(call)):
                yield each

    async def follow(self, feed: Feed[T]) -> AsyncIterator[T]:
        """What a stream tells until its end, over as many connections as it takes."""
        tries, after = Tries(self.url, self._stream_patience_s), feed.after
        while True:
            try:
                async for message in self._connect(feed, after, tries):
                    if message.event == "end":
                        return
                    after = message.id or after
                    for each in feed.read(message.data):
                        yield each
                pause = tries.next()
            except (httpx.TransportError, ApiError) as error:
                pause = tries.pause(error)
            await asyncio.sleep(pause)

    async def _connect(self, feed: Feed[Any], after: str | None, tries: Tries) -> AsyncIterator[ServerEvent]:
        response = await self._http.send(request(self._http, feed, after), stream=True)
        async with aclosing(response):
            if not response.is_success:
                await response.aread()
                raise refusal(response)
            messages = Messages()
            async for line in response.aiter_lines():
                tries.succeeded()
                if message := messages.line(line):
                    yield message

    async def download(self, what: Download) -> AsyncIterator[bytes]:
        """A file in pieces."""
        try:
            response = await self._http.send(request(self._http, what), stream=True)
            async with aclosing(response):
                if not response.is_success:
                    await response.aread()
                    raise refusal(response)
                async for piece in response.aiter_bytes(PIECE_BYTES):
                    yield piece
        except httpx.TransportError as error:
            raise Unreachable(self.url, error) from error

    async def wait(
        self, run: str, show: Show | None = None, *, until: Collection[str] = TERMINAL, timeout_s: float | None = None
    ) -> Run:
        """The run once its phase is one of `until`; on the way there it is given to `show` twice a second.

        Outlives a minute without an answer. Raises TimeoutError after `timeout_s` seconds.
        """
        deadline = Deadline(run, timeout_s)
        while True:
            now = await self.send(calls.run(run), STREAM_PATIENCE_S)
            if show:
                show(now)
            if now["phase"] in until:
                return now
            deadline.check(now["phase"])
            await asyncio.sleep(LOOK_EVERY_S)


def _call(build: Callable[P, Call[T]]) -> Method[AsyncCarrier, P, Awaitable[T]]:
    return Method(build, AsyncCarrier.send)


def _list(build: Callable[P, Pages[T]]) -> Method[AsyncCarrier, P, AsyncIterator[T]]:
    return Method(build, AsyncCarrier.pages)


def _feed(build: Callable[P, Feed[T]]) -> Method[AsyncCarrier, P, AsyncIterator[T]]:
    return Method(build, AsyncCarrier.follow)


def _file(build: Callable[P, Download]) -> Method[AsyncCarrier, P, AsyncIterator[bytes]]:
    return Method(build, AsyncCarrier.download)


class AsyncClient(AsyncCarrier):
    """The API at `url`, one method an operation (its parameters and words: `controlplane.client.calls`).

    Use it as an asynchronous context manager, or await `close`. `submit` and `handle` give a run as an object.
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

    async def submit(self, spec: Mapping[str, Any], idempotency_key: str | None = None) -> AsyncRunHandle:
        """Create a run, as `create`, and take hold of it."""
        return await self.handle((await self.create(spec, idempotency_key))["id"])

    async def handle(self, run: str) -> AsyncRunHandle:
        """Take hold of a run by its id, or by its name while it lives."""
        return AsyncRunHandle(self, (await self.run(run))["id"])


class AsyncRunHandle:
    """One run of a client. `id` is its id; everything else is asked of the API when it is called."""

    def __init__(self, client: AsyncClient, run_id: str) -> None:
        self.id = run_id
        self._client = client

    def __repr__(self) -> str:
        return f"AsyncRunHandle({self.id!r} at {self._client.url})"

    async def get(self) -> Run:
        """The run as it is now."""
        return await self._client.run(self.id)

    async def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> Run:
        """The run as it ended, well or not; `progress` shows it on stdout. Raises TimeoutError after `timeout_s`."""
        with screen() if progress else nullcontext() as show:
            return await self._client.wait(self.id, show, timeout_s=timeout_s)

    async def logs(
        self, *, follow: bool = False, rank: int = 0, attempt: int | None = None, tail: int | None = None
    ) -> AsyncIterator[str]:
        """A rank's lines: those of the newest attempt, or with `follow` those to come too, until the run has ended."""
        if follow:
            async for line in self._client.stream_logs(self.id, rank=rank, attempt=attempt, tail=tail):
                yield line
            return
        for line in (await self._client.logs(self.id, rank=rank, attempt=attempt, tail=tail)).split("\n")[:-1]:
            yield line

    async def events(self, *, follow: bool = False) -> AsyncIterator[Event]:
        """Its events, oldest first; with `follow` those to come too, until the run has ended."""
        if follow:
            async for event in self._client.stream_events(self.id):
                yield event
            return
        for event in await self._client.events(self.id):
            yield event

    async def metrics(
        self, *, keys: Sequence[str] = (), downsample: int | None = None, library: Library | None = None
    ) -> Any:
        """Its curve as a frame of pandas or polars, whichever is installed, else as a list of rows (`frames`)."""
        return frame_of(await self._client.metrics(self.id, keys=keys, downsample=downsample), library)

    async def cancel(self) -> Run:
        """Ask for its end."""
        return await self._client.cancel(self.id)

    async def save(self) -> Run:
        """Ask for a checkpoint now; it goes on."""
        return await self._client.save(self.id)

    async def suspend(self) -> Run:
        """Let it stop for now."""
        return await self._client.suspend(self.id)

    async def resume(self) -> Run:
        """Let it go on."""
        return await self._client.resume(self.id)

    async def retry(self) -> AsyncRunHandle:
        """A new run that goes on from its last checkpoint."""
        return AsyncRunHandle(self._client, (await self._client.retry(self.id))["id"])
