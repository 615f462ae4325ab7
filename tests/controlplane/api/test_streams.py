from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from controlplane.api.body import LARGEST_INTEGER
from controlplane.api.problems import Refusal
from controlplane.api.streams import END, PING, Batch, EventStream, Hub, Message, Position, Source, parse_position
from controlplane.services.metrics import add_metrics
from controlplane.settings import Streams
from tests.controlplane.plane import Plane

QUICK = Streams(heartbeat_s=5.0, send_timeout_s=5.0)


class Counter:
    """A source of numbered messages that grows while it is read."""

    def __init__(self, count: int = 0, *, ended: bool = False, poll_s: float = 0.01) -> None:
        self.count, self.ended, self.reads = count, ended, 0
        self.listeners: list[Callable[[], None]] = []
        self.source = Source("counter", self.read, self.listen, poll_s)

    def read(self, after: Position, limit: int) -> Batch:
        self.reads += 1
        ended, last = self.ended, self.count
        messages = [Message((n,), "tick", {"n": n}) for n in range(after[0] + 1, min(last, after[0] + limit) + 1)]
        return Batch(messages, messages[-1].position if messages else after, ended and not messages)

    @contextmanager
    def listen(self, changed: Callable[[], None]) -> Iterator[None]:
        self.listeners.append(changed)
        yield
        self.listeners.remove(changed)


def ids(chunks: bytes) -> list[int]:
    return [int(line[4:]) for line in chunks.decode().splitlines() if line.startswith("id: ")]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


async def gather(stream: AsyncGenerator[bytes], until: Callable[[bytes], bool] = lambda _: False) -> bytes:
    text = b""
    async for chunk in stream:
        text += chunk
        if until(text):
            break
    await stream.aclose()
    return text


def test_a_stream_that_has_ended_is_told_whole_and_ends() -> None:
    text = asyncio.run(gather(Hub(QUICK).follow(Counter(1234, ended=True).source, (0,))))
    assert ids(text) == list(range(1, 1235))
    assert text.endswith(END)


def test_a_stream_goes_on_after_the_position_it_is_given() -> None:
    text = asyncio.run(gather(Hub(QUICK).follow(Counter(20, ended=True).source, (15,))))
    assert ids(text) == [16, 17, 18, 19, 20]


def test_past_and_live_join_without_a_gap_or_a_repetition() -> None:
    async def scene() -> list[bytes]:
        hub, source = Hub(QUICK), Counter(700)
        clients = [asyncio.create_task(gather(hub.follow(source.source, (after,)))) for after in (0, 300, 699)]
        for _ in range(100):
            source.count += 7
            await asyncio.sleep(0.001)
            if len(clients) < 5:
                clients.append(asyncio.create_task(gather(hub.follow(source.source, (source.count - 50,)))))
        source.ended = True
        return await asyncio.gather(*clients)

    for text in asyncio.run(scene()):
        told = ids(text)
        assert told == list(range(told[0], 1401))
        assert text.endswith(END)


def test_any_number_of_clients_share_one_tail() -> None:
    async def scene() -> tuple[int, int]:
        hub, source = Hub(QUICK), Counter(3, poll_s=0.02)
        clients = [asyncio.create_task(gather(hub.follow(source.source, (0,)))) for _ in range(50)]
        await until(lambda: hub.open == 50 and source.reads >= 153)  # three reads of the past a client
        before = source.reads
        await asyncio.sleep(0.2)
        during = source.reads - before
        source.ended = True
        await asyncio.gather(*clients)
        return during, hub.open

    during, left = asyncio.run(scene())
    assert during < 50
    assert left == 0


def test_news_wake_a_tail_before_its_next_look() -> None:
    async def scene() -> bytes:
        hub, source = Hub(QUICK), Counter(1, poll_s=1000)
        client = asyncio.create_task(gather(hub.follow(source.source, (0,))))
        await until(lambda: source.listeners and source.reads >= 4)
        source.count, source.ended = 2, True
        while not client.done():
            for changed in source.listeners:
                await asyncio.to_thread(changed)
            await asyncio.sleep(0.01)
        assert not source.listeners
        return await client

    assert ids(asyncio.run(scene())) == [1, 2]


def test_what_comes_first_is_told_first() -> None:
    first = [Message((3,), "tick", {"n": 3})]
    text = asyncio.run(gather(Hub(QUICK).follow(Counter(5, ended=True).source, (3,), first)))
    assert ids(text) == [3, 4, 5]


def test_silence_is_filled_with_pings() -> None:
    hub = Hub(Streams(heartbeat_s=0.05))
    text = asyncio.run(gather(hub.follow(Counter().source, (0,)), lambda text: text.count(PING) >= 3))
    assert text == PING * 3


def test_a_client_that_does_not_read_is_dropped_and_others_are_not() -> None:
    async def scene() -> tuple[bytes, bytes]:
        hub, source = Hub(Streams(heartbeat_s=5, queue_bytes=200)), Counter(1)
        slow, quick = hub.follow(source.source, (0,)), hub.follow(source.source, (0,))
        reader = asyncio.create_task(gather(quick))
        first = await anext(slow) + await anext(slow)
        waiting = asyncio.create_task(anext(slow))
        await asyncio.sleep(0.05)
        source.count += 1
        first += await waiting  # it is live now, and stops reading
        for _ in range(20):
            source.count += 1
            await asyncio.sleep(0.02)
        rest = await gather(slow)
        source.ended = True
        return first + rest, await reader

    slow, quick = asyncio.run(scene())
    assert ids(slow) == [1, 2]
    assert END not in slow
    assert ids(quick) == list(range(1, 23))


def test_closing_the_hub_ends_streams_without_saying_that_the_run_ended() -> None:
    async def scene() -> bytes:
        hub, source = Hub(QUICK), Counter(2)
        client = asyncio.create_task(gather(hub.follow(source.source, (0,))))
        await until(lambda: source.reads >= 5)
        hub.close()
        late = await gather(hub.follow(source.source, (0,)))
        assert END not in late
        return await client

    text = asyncio.run(scene())
    assert ids(text) == [1, 2]
    assert END not in text


def test_a_tail_that_fails_ends_its_clients_so_that_they_come_back(caplog: pytest.LogCaptureFixture) -> None:
    source = Counter(2)

    def read(after: Position, limit: int) -> Batch:
        if source.reads > 4:
            raise OSError("disk gone")
        return source.read(after, limit)

    text = asyncio.run(gather(Hub(QUICK).follow(dataclasses.replace(source.source, read=read), (0,))))
    assert ids(text) == [1, 2]
    assert END not in text
    assert "tail failed" in caplog.text


def test_a_message_is_one_ascii_line_of_data() -> None:
    wire = Message((2, 7), "log", {"line": "ein\u2028Wört\r\n"}).encode()
    assert wire == b'id: 2.7\nevent: log\ndata: {"line": "ein\\u2028W\\u00f6rt\\r\\n"}\n\n'


@pytest.mark.parametrize("text", ["", "x", "1", "1.2.3", "-1.2", "1.²", "1." + "9" * 30])
def test_an_id_of_another_stream_is_refused(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_position(text, 2)
    assert caught.value.fields[0].pointer == "header:last-event-id"


@pytest.mark.parametrize(("stream", "newest"), [("events", "3"), ("metrics", "1.2")])
def test_an_id_that_the_stream_has_not_come_to_is_refused(
    plane: Plane, client: TestClient, stream: str, newest: str
) -> None:
    """As that of a control plane which was restored from an earlier backup: what follows would never come."""
    run = client.post("/runs", json={"size": "tiny"}).json()["id"]
    points = [{"seq": seq, "step": seq, "time": 1.0, "loss": 3.0} for seq in (1, 2)]
    add_metrics(plane.context, run, 1, points)
    plane.end(run)
    whole = client.get(f"/runs/{run}/{stream}/stream")
    assert [line[4:] for line in whole.text.splitlines() if line.startswith("id: ")][-1] == newest
    assert client.get(f"/runs/{run}/{stream}/stream", headers={"last-event-id": newest}).content == PING + END
    beyond = f"{newest[:-1]}{int(newest[-1]) + 1}"
    refused = client.get(f"/runs/{run}/{stream}/stream", headers={"last-event-id": beyond})
    assert refused.status_code == 422
    (problem,) = refused.json()["errors"]
    told = f"got '{beyond}'; allowed: an id of this stream, of which {newest} is the newest"
    assert (problem["pointer"], problem["detail"]) == ("header:last-event-id", told)


def test_an_id_names_its_position() -> None:
    assert parse_position("3.44", 2) == (3, 44)
    assert parse_position(f"1.{LARGEST_INTEGER}", 2) == (1, LARGEST_INTEGER)
    assert parse_position(None, 2) is None


class Wire:
    """The server's end of a connection: takes `room` messages, then blocks."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()

    async def send(self, message: Any) -> None:
        if len(self.sent) >= self.room:
            await asyncio.Event().wait()
        self.sent.append(message)

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


def test_a_client_that_leaves_a_message_unread_is_let_go() -> None:
    async def scene() -> int:
        hub, wire = Hub(QUICK), Wire(room=2)
        await EventStream(hub.follow(Counter(5).source, (0,)), 0.05)({}, wire.receive, wire.send)
        return hub.open

    assert asyncio.run(scene()) == 0


def test_a_client_that_goes_frees_its_place() -> None:
    async def scene() -> int:
        hub, wire = Hub(QUICK), Wire(room=100)
        task = asyncio.create_task(EventStream(hub.follow(Counter(5).source, (0,)), 5)({}, wire.receive, wire.send))
        await until(lambda: len(wire.sent) >= 3)
        wire.gone.set()
        await task
        return hub.open

    assert asyncio.run(scene()) == 0
