"""Logs of this machine's pods are compressed while they grow and when they are over, and never lose a byte silently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.clusters.local import keeper
from controlplane.clusters.pieces import Limits
from tests.controlplane.clusters.local.conftest import Bench, until

PIECE = 64 << 10
WRITES = """
import time
for step in range(20_000):
    print("step", step, "of 20000 | loss 3.14159", flush=step % 500 == 0)
print("done", flush=True)
time.sleep(1000 if {wait} else 0)
"""
TEXT = "".join(f"step {step} of 20000 | loss 3.14159\n" for step in range(20_000)).encode() + b"done\n"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(keeper, "LOOK_S", 0.02)
    bench = Bench(tmp_path / "cluster", limits=Limits(PIECE))
    yield bench
    bench.finish()


def pieces(folder: Path) -> int:
    return len([*folder.glob("log.*.gz")])


def follow(bench: Bench, name: str) -> bytes:
    """Read as a follower does until all was read."""
    read = b""

    def more() -> bool:
        nonlocal read
        read += bench.cluster.logs(name, f"{name}-master-0", len(read), 10_000)
        return len(read) >= len(TEXT)

    until(more, lambda: f"{len(read)} of {len(TEXT)} bytes: {bench.told(name)[-300:]}")
    return read


def test_a_follower_reads_every_byte_once_while_pieces_leave(small: Bench) -> None:
    small.create("long", WRITES.format(wait=True))
    assert follow(small, "long") == TEXT
    folder = small.folder("long")
    until(lambda: pieces(folder) >= 8)
    assert small.cluster.logs("long", "long-master-0", 0, 1 << 30) == TEXT
    assert (folder / "log").stat().st_blocks * 512 < 4 * PIECE
    small.reopen()
    assert small.cluster.logs("long", "long-master-0", 0, 1 << 30) == TEXT


def test_what_has_ended_is_compressed_whole_also_by_the_next_control_plane(small: Bench) -> None:
    small.create("done", WRITES.format(wait=False))
    small.pod("done", "Succeeded")
    small.cluster.delete("done")
    small.gone("done")
    small.reopen()
    folder = small.root / "ended" / "done" / "done-master-0"
    until(lambda: not (folder / "log").exists())
    assert small.cluster.logs("done", "done-master-0", 0, 1 << 30) == TEXT
    assert sum(each.stat().st_size for each in folder.glob("log*")) < len(TEXT) / 3
    small.cluster.forget("done")
    assert not folder.exists()


def test_beyond_its_limit_a_log_gives_up_its_oldest_and_the_pod_tells(small: Bench) -> None:
    small.reopen(limits=Limits(PIECE, 3 * PIECE))
    small.create("cut", WRITES.format(wait=True))
    until(lambda: small.cluster.log_extent("cut", "cut-master-0").end == len(TEXT))
    until(lambda: small.pods("cut")[0].log_from >= len(TEXT) - 3 * PIECE)
    there = small.cluster.log_extent("cut", "cut-master-0")
    assert there.lines == TEXT[: there.first].count(b"\n")
    assert small.cluster.logs("cut", "cut-master-0", there.first, 1 << 30) == TEXT[there.first :]
    small.reopen(limits=Limits(PIECE))
    assert small.pods("cut")[0].log_from == there.first
