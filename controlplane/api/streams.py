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
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

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


def parse_position(text: str | None, length: int) -> Position | None:
    """The position that a Last-Event-ID names, if there is one. Raises Refusal."""
    if text is None:
        return None
    parts = text.split(".")
    if len(parts) != length or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        detail = f"got {text[:40]!r}; allowed: an id of this stream"
        raise invalid([FieldProblem(pointer="header:last-event-id", code="invalid_value", detail=detail)])
    return tuple(map(int, parts))


@dataclass(eq=False)
class _Subscriber:
    """A client of a tail; `dropped` once it was too slow, or the hub was closed."""

    queue: asyncio.Queue[Message | None]
    dropped: bool = False

    def push(self, message: Message | None) -> None:
        """Hand on a message (None: the end); a full queue costs the client its place."""
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            self.drop()

    def drop(self) -> None:
        """End it before the stream's end."""
        self.dropped = True
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)


@dataclass(eq=False)
class _Tail:
    """Reads one stream's news for all of its subscribers."""

    read: Read
    position: Position
    subscribers: set[_Subscriber] = field(default_factory=set[_Subscriber])
    task: asyncio.Task[None] | None = None

    def push(self, batch: Batch) -> None:
        """Hand a batch to every subscriber, and forget those that are too slow for it."""
        for subscriber in self.subscribers:
            for message in [*batch.messages, *([None] if batch.ended else [])]:
                if not subscriber.dropped:
                    subscriber.push(message)
        self.subscribers = {subscriber for subscriber in self.subscribers if not subscriber.dropped}


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

    async def follow(self, key: Hashable, read: Read, after: Position) -> AsyncGenerator[bytes]:
        """The stream `key` from `after` on, in chunks of whole messages, with pings where nothing happens."""
        self.open += 1
        subscriber: _Subscriber | None = None
        try:
            yield PING  # the first byte tells the client that it is connected
            for joined in (False, True):
                batch = await asyncio.to_thread(read, after, BATCH)
                while batch.messages and not self.closed:
                    yield b"".join(message.encode() for message in batch.messages)
                    batch = await asyncio.to_thread(read, batch.position, BATCH)
                if batch.ended:
                    yield END
                if batch.ended or self.closed:
                    return
                after = batch.position
                if not joined:
                    subscriber = self._join(key, read, after)
            assert subscriber is not None
            async for chunk in self._live(subscriber, after):
                yield chunk
        finally:
            self.open -= 1
            if subscriber is not None:
                self._leave(key, subscriber)

    async def _live(self, subscriber: _Subscriber, after: Position) -> AsyncGenerator[bytes]:
        """What comes through the subscriber's queue beyond `after`."""
        while True:
            try:
                async with asyncio.timeout(self.settings.heartbeat_s):
                    messages = [await subscriber.queue.get()]
            except TimeoutError:
                yield PING
                continue
            while not subscriber.queue.empty():
                messages.append(subscriber.queue.get_nowait())
            if subscriber.dropped:
                return
            chunk = b"".join(END if m is None else m.encode() for m in messages if m is None or m.position > after)
            if chunk:
                yield chunk
            if messages[-1] is None:
                return

    def _join(self, key: Hashable, read: Read, position: Position) -> _Subscriber:
        tail = self._tails.get(key)
        if not tail:
            tail = self._tails[key] = _Tail(read, position)
            tail.task = asyncio.create_task(self._run(key, tail))
        subscriber = _Subscriber(asyncio.Queue(self.settings.queue))
        tail.subscribers.add(subscriber)
        return subscriber

    def _leave(self, key: Hashable, subscriber: _Subscriber) -> None:
        tail = self._tails.get(key)
        if tail:
            tail.subscribers.discard(subscriber)
            if not tail.subscribers and tail.task:
                tail.task.cancel()
                del self._tails[key]

    async def _run(self, key: Hashable, tail: _Tail) -> None:
        """Read until the stream ends or nobody listens; an error drops the listeners, who come back."""
        try:
            while tail.subscribers:
                batch = await asyncio.to_thread(tail.read, tail.position, BATCH)
                tail.position = batch.position
                tail.push(batch)
                if batch.ended:
                    return
                if not batch.messages:
                    await asyncio.sleep(self.settings.poll_s)
        except Exception:
            log.exception("tail failed", extra={"stream": str(key)})
            for subscriber in tail.subscribers:
                subscriber.drop()
        finally:
            if self._tails.get(key) is tail:
                del self._tails[key]


class EventStream(Response):
    """Sends an event stream until it ends or its client is gone, or leaves a message unread for `send_timeout_s`."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes], send_timeout_s: float) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
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
