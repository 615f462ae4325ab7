"""Server-sent events: one tail a run and subject, any number of clients, each resuming where it stopped.

A client first reads the past for itself, then joins the tail, whose bounded queue carries the live messages. A client
that reads too slowly loses its queue and its connection, and comes back with `Last-Event-ID`. Positions grow along a
stream and are its ids, so the splice of past and live loses nothing and says nothing twice. This module knows
positions and messages, not what they are about.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from controlplane.api.body import LARGEST_INTEGER
from controlplane.api.problems import FieldProblem, invalid
from controlplane.settings import Streams

log = logging.getLogger("controlplane.streams")

PING = b": ping\n\n"
END = b"event: end\ndata: {}\n\n"
BATCH = 500  # messages read at once

Position = tuple[int, ...]


@dataclass(frozen=True)
class Message:
    """One message of a stream, at a `position` that is greater than those before it."""

    position: Position
    event: str
    data: Mapping[str, Any]

    def encode(self) -> bytes:
        """As it goes over the wire. ASCII, so that no reader finds a line break in it."""
        name = ".".join(map(str, self.position))
        return f"id: {name}\nevent: {self.event}\ndata: {json.dumps(self.data)}\n\n".encode()


@dataclass(frozen=True)
class Batch:
    """Messages after a position; `ended`: there are none and none will come. `position`: where to read on."""

    messages: list[Message]
    position: Position
    ended: bool


Read = Callable[[Position, int], Batch]  # (after, at most) -> Batch; called in a thread
Listen = Callable[[Callable[[], None]], AbstractContextManager[None]]  # calls back, from any thread, after news


@dataclass(frozen=True)
class Source:
    """Where a stream's messages come from. `key` tells it from others; without news it is read every `poll_s`."""

    key: Hashable
    read: Read
    listen: Listen
    poll_s: float = 5.0


def stream_responses(name: str) -> dict[int | str, dict[str, Any]]:
    """What the documentation says of a stream's reply."""
    message = f"id: 1\nevent: {name.removesuffix('s')}\ndata: {{}}\n\nevent: end\ndata: {{}}\n\n"
    return {
        200: {
            "description": f"The {name}, as server-sent events.",
            "content": {EventStream.media_type: {"example": message}},
        }
    }


def parse_position(text: str | None, length: int, newest: Position | None = None) -> Position | None:
    """The position that a Last-Event-ID names, if there is one; `newest`: none beyond it. Raises Refusal."""
    if text is None:
        return None
    parts = text.split(".")
    known = len(parts) == length and all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts)
    position = tuple(map(int, parts)) if known else ()
    if not known or max(position) > LARGEST_INTEGER or (newest is not None and position > newest):
        until = f", of which {'.'.join(map(str, newest))} is the newest" if known and newest is not None else ""
        detail = f"got {text[:40]!r}; allowed: an id of this stream{until}"
        raise invalid([FieldProblem(pointer="header:last-event-id", code="invalid_value", detail=detail)])
    return position


@dataclass(eq=False)
class _Subscriber:
    """A client of a tail, with the messages that wait for it; `dropped` once they were too many, or the hub closed."""

    most_bytes: int
    waiting: deque[tuple[Position, bytes]] = field(default_factory=deque[tuple[Position, bytes]])
    size: int = 0
    ended: bool = False
    dropped: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def push(self, position: Position, wire: bytes) -> None:
        """Let a message wait."""
        self.waiting.append((position, wire))
        self.size += len(wire)
        if self.size > self.most_bytes and len(self.waiting) > 1:
            self.drop()
        self.news.set()

    def end(self) -> None:
        """There is nothing after what waits."""
        self.ended = True
        self.news.set()

    def drop(self) -> None:
        """End it before the stream's end."""
        self.dropped = True
        self.waiting.clear()
        self.news.set()

    def take(self, after: Position) -> bytes:
        """Everything that waits beyond `after`."""
        wires = [wire for position, wire in self.waiting if position > after]
        self.waiting.clear()
        self.size = 0
        self.news.clear()
        return b"".join(wires)


@dataclass(eq=False)
class _Tail:
    """Reads one stream's news for all of its subscribers."""

    source: Source
    position: Position
    subscribers: set[_Subscriber] = field(default_factory=set[_Subscriber])
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Read until the stream ends; an error drops the listeners, who come back."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self.news.set)

        try:
            with self.source.listen(wake):
                while await self.step():
                    pass
        except Exception:
            log.exception("tail failed", extra={"stream": str(self.source.key)})
            for subscriber in self.subscribers:
                subscriber.drop()

    async def step(self) -> bool:
        """Read once and hand on what came; wait for news where nothing did. False at the stream's end."""
        self.news.clear()
        batch = await asyncio.to_thread(self.source.read, self.position, BATCH)
        for message in batch.messages:
            wire = message.encode()
            for subscriber in self.subscribers:
                subscriber.push(message.position, wire)
        self.subscribers = {subscriber for subscriber in self.subscribers if not subscriber.dropped}
        moved, self.position = batch.position != self.position, batch.position
        if batch.ended:
            for subscriber in self.subscribers:
                subscriber.end()
        elif not moved:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.source.poll_s):
                    await self.news.wait()
        return not batch.ended


class Hub:
    """The streams of one process. Lives in one event loop."""

    def __init__(self, settings: Streams) -> None:
        self.settings = settings
        self.closed = False
        self.open = 0
        self._tails: dict[Hashable, _Tail] = {}

    def close(self) -> None:
        """End every stream, so that the process can stop; clients reconnect to the next one."""
        self.closed = True
        for tail in list(self._tails.values()):
            for subscriber in tail.subscribers:
                subscriber.drop()

    async def follow(self, source: Source, after: Position, first: Iterable[Message] = ()) -> AsyncGenerator[bytes]:
        """The stream from `after` on, in chunks of whole messages, with pings where nothing happens.

        `first` are messages up to `after`, which come before.
        """
        self.open += 1
        subscriber: _Subscriber | None = None
        try:
            yield PING + b"".join(message.encode() for message in first)  # a first byte says that it is connected
            for joined in (False, True):
                batch = await asyncio.to_thread(source.read, after, BATCH)
                while batch.position != after and not self.closed:
                    if batch.messages:
                        yield b"".join(message.encode() for message in batch.messages)
                    after = batch.position
                    batch = await asyncio.to_thread(source.read, after, BATCH)
                if batch.ended:
                    yield END
                if batch.ended or self.closed:
                    return
                if not joined:
                    subscriber = self._join(source, after)
            assert subscriber is not None
            async for chunk in self._live(subscriber, after):
                yield chunk
        finally:
            self.open -= 1
            if subscriber is not None:
                self._leave(source, subscriber)

    async def _live(self, subscriber: _Subscriber, after: Position) -> AsyncGenerator[bytes]:
        """What comes to the subscriber beyond `after`."""
        while True:
            try:
                async with asyncio.timeout(self.settings.heartbeat_s):
                    await subscriber.news.wait()
            except TimeoutError:
                yield PING
                continue
            if subscriber.dropped:
                return
            ended = subscriber.ended
            if chunk := subscriber.take(after) + (END if ended else b""):
                yield chunk
            if ended:
                return

    def _join(self, source: Source, position: Position) -> _Subscriber:
        tail = self._tails.get(source.key)
        if tail is None:
            tail = self._tails[source.key] = _Tail(source, position)
            tail.task = asyncio.create_task(self._run(tail))
        subscriber = _Subscriber(self.settings.queue_bytes)
        tail.subscribers.add(subscriber)
        return subscriber

    def _leave(self, source: Source, subscriber: _Subscriber) -> None:
        tail = self._tails.get(source.key)
        if tail is not None:
            tail.subscribers.discard(subscriber)
            if not tail.subscribers and tail.task is not None:
                tail.task.cancel()
                del self._tails[source.key]

    async def _run(self, tail: _Tail) -> None:
        try:
            await tail.run()
        finally:
            if self._tails.get(tail.source.key) is tail:
                del self._tails[tail.source.key]


class EventStream(Response):
    """Sends an event stream until it ends or its client is gone, or leaves a message unread for `send_timeout_s`."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes], send_timeout_s: float, status_code: int = 200) -> None:
        super().__init__(None, status_code, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.chunks, self.send_timeout_s = chunks, send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        del scope
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, receive, tasks.cancel_scope)
            async with aclosing(self.chunks) as chunks:
                await self._send(chunks, send)
            tasks.cancel_scope.cancel()

    async def _send(self, chunks: AsyncGenerator[bytes], send: Send) -> None:
        try:
            async for chunk in chunks:
                async with asyncio.timeout(self.send_timeout_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            async with asyncio.timeout(self.send_timeout_s):
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError:  # too slow: it comes back with Last-Event-ID
            return

    @staticmethod
    async def _watch(receive: Receive, scope: anyio.CancelScope) -> None:
        """Stop sending once the client has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()
