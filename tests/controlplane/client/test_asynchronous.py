from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import TypeVar

import pytest

from controlplane.client import ApiError, AsyncClient, Unreachable
from tests.controlplane.plane import Plane, opened, serving

T = TypeVar("T")


@pytest.fixture
def plane(tmp_path: Path, migrated: Path) -> Generator[Plane]:
    with opened(tmp_path / "home", migrated, token="a-token") as plane:
        yield plane


async def all_of(told: AsyncIterator[T]) -> list[T]:
    return [each async for each in told]


def test_a_run_is_made_watched_and_read_beside_others(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.client.asynchronous.LOOK_EVERY_S", 0.01)

    async def story(url: str) -> None:
        async with AsyncClient(url, "a-token") as client:
            run, *others = await asyncio.gather(*(client.submit({"size": "tiny"}) for _ in range(3)))
            assert {each["id"] async for each in client.runs()} == {run.id, *(other.id for other in others)}
            assert [each["id"] async for each in client.runs(limit=1)] == [max(run.id, *(other.id for other in others))]
            assert (await client.handle(run.id)).id == (await run.get())["id"]
            plane.write(await asyncio.to_thread(plane.start, run.id), "one\ntwo\f2\n")
            lines = asyncio.create_task(all_of(run.logs(follow=True)))
            ended = asyncio.create_task(run.wait(progress=True))
            assert await all_of(run.logs(tail=1)) == ["two\f2"]
            with pytest.raises(TimeoutError, match="is running"):
                await run.wait(timeout_s=0)
            await asyncio.to_thread(plane.succeed, run.id)
            assert (await ended)["phase"] == "succeeded"
            assert await lines == ["one", "two\f2"]
            assert await all_of(run.events()) == await all_of(run.events(follow=True))
            assert len(await run.metrics()) == 0
            with pytest.raises(ApiError, match="is succeeded, so that nobody can write a checkpoint now"):
                await run.save()
            again = await run.retry()
            assert [(await again.suspend())["desired"], (await again.resume())["desired"]] == ["suspended", "running"]
            assert (await again.cancel())["desired"] == "cancelled"
            assert (b"".join(await all_of(client.backup()))).startswith(b"SQLite format 3")
            with pytest.raises(ApiError, match="no run"):
                await client.run("nobody")
            with pytest.raises(ApiError):
                await all_of(client.fetch(run.id))
            with pytest.raises(ApiError):
                await all_of(client.stream_logs("nobody"))

    with serving(plane.app()) as url:
        asyncio.run(story(url))


def test_nobody_there_is_one_sentence() -> None:
    async def story() -> None:
        async with AsyncClient("http://127.0.0.1:1", patience_s=0, stream_patience_s=0) as client:
            with pytest.raises(Unreachable, match="no control plane answers"):
                await client.run("x")
            with pytest.raises(Unreachable):
                await all_of(client.stream_events("x"))
            with pytest.raises(Unreachable):
                await all_of(client.backup())

    asyncio.run(story())
