"""kill -9 at any instant of `teragpt prepare`, `export` and `import`: a folder is whole or absent (docs/chaos.md).

TERAGPT_KILLS (3) says how many rounds, TERAGPT_CHAOS_SEED (7) which, TERAGPT_CHAOS_ROUND plays one of them again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from teragpt.checkpoint import published
from teragpt.config import ConfigError
from teragpt.data import open_dataset
from teragpt.datasets.embedded import library
from teragpt.prepare.corpus import read_library
from teragpt.storage import Disk
from tests.teragpt import forks, ranks

pytestmark = [pytest.mark.timeout(900), pytest.mark.unmeasured]
SEED, ROUND = int(os.environ.get("TERAGPT_CHAOS_SEED", "7")), os.environ.get("TERAGPT_CHAOS_ROUND")
ROUNDS = [int(ROUND)] if ROUND else range(int(os.environ.get("TERAGPT_KILLS", "3")))
VARIES = {"meta.json", ".metadata"}  # of a checkpoint, with the time and an id in them
KILLED = 128 + signal.SIGKILL
LINES = 300  # modules; two blocks of text, so that a preparation has something to go on with
SMALL_BLOCKS = """
import sys
from teragpt.prepare import preparation, sources
from teragpt.prepare.__main__ import main
preparation.BLOCK_BYTES = sources.BLOCK_BYTES = 1 << 19
sys.exit(main(sys.argv[1:]))
"""
WAYS = "prepare", "export", "import"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    modules = ["".join(one.parts) for one in read_library(library())][:LINES]
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in modules * 2))
    return path


@pytest.fixture(scope="module")
def command(text: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], list[str]]:
    """The command line of each way to make a folder."""
    model = tmp_path_factory.mktemp("model") / "model"
    made = teragpt("export", str(trained), str(model))
    assert made[0] == 0, made[1]
    return lambda way, out: {
        "prepare": ["prepare", str(text), "-o", str(out), "--tokenizer", str(trained / "tokenizer"), "--workers", "1"],
        "export": ["export", str(trained), str(out)],
        "import": ["import", str(model), str(out)],
    }[way]


@pytest.fixture(scope="module")
def whole(
    command: Callable[[str, Path], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, float]]:
    """What each way makes when nothing strikes it, and its seconds."""

    @functools.cache
    def make(way: str) -> tuple[Path, float]:
        out, began = tmp_path_factory.mktemp(way) / "whole", time.monotonic()
        code, said = teragpt(*command(way, out))
        assert code == 0, said
        return out, time.monotonic() - began

    return make


def teragpt(*words: str, kill_after: float = float("inf")) -> tuple[int, str]:
    """A command, killed after so many seconds if it still runs: its exit code and output."""
    at = time.monotonic() + kill_after
    environ = {**ranks.outside(), "TERAGPT_CACHE": os.environ.get("TERAGPT_CACHE", "")}
    reached = (lambda _: time.monotonic() > at) if kill_after < float("inf") else None
    return forks.run(["-m", "controlplane.cli", *words], 1, environ, ranks.PATIENCE_S, reached)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, but for those that tell the time."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in VARIES)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def whole_or_absent(way: str, out: Path, expected: Path) -> None:
    """A folder that a killed command has left, and what lies beside it, is not taken for more than it is."""
    if out.exists():
        assert content(out) == content(expected)
        if way == "import":
            last = published(Disk(out))[-1]
            assert last.meta["files"] == {name: last.folder.entries()[name] for name in last.meta["files"]}
    for beside in (path for path in out.parent.iterdir() if path != out):
        assert beside.name.startswith(".")
        if way == "prepare":
            with contextlib.suppress(ConfigError):  # it is no dataset yet
                assert open_dataset(str(beside)).fingerprint == open_dataset(str(expected)).fingerprint


@pytest.mark.parametrize("number", ROUNDS)
def test_a_folder_is_whole_or_absent_whenever_its_maker_is_killed(
    number: int, tmp_path: Path, command: Callable[[str, Path], list[str]], whole: Callable[[str], tuple[Path, float]]
) -> None:
    print(f"make chaos TESTS=tests/teragpt/test_killed.py SEED={SEED} ROUND={number}")
    way, chance = WAYS[number % len(WAYS)], random.Random(f"{SEED} {number}")
    expected, seconds = whole(way)
    out = tmp_path / "out"
    for _ in range(chance.randint(1, 3)):
        after = chance.uniform(0, 1.1 * seconds)
        code, said = teragpt(*command(way, out), kill_after=after)
        assert code in {0, KILLED}, said
        print(f"{way}: killed after {after:.3f} s of {seconds:.3f}" if code else f"{way}: was done")
        whole_or_absent(way, out, expected)
        shutil.rmtree(out, ignore_errors=True)  # the same command again, over what else was left
    code, said = teragpt(*command(way, out))
    assert code == 0, said
    assert content(out) == content(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", ROUNDS[::3])
def test_a_worker_or_the_parent_killed_alone_leaves_neither_a_dataset_nor_a_process_and_no_part_is_made_twice(
    number: int, tmp_path: Path, text: Path, trained: Path, whole: Callable[[str], tuple[Path, float]]
) -> None:
    print(f"make chaos TESTS=tests/teragpt/test_killed.py SEED={SEED} ROUND={number}")
    chance, out, parts = random.Random(f"{SEED} {number}"), tmp_path / "out", tmp_path / ".out.partial" / "parts"
    words = [str(text), "-o", str(out), "--tokenizer", str(trained / "tokenizer"), "--workers", "3"]
    kept: dict[Path, int] = {}
    for more in (1, 3):
        victim = chance.choice(["worker", "parent"])
        with subprocess.Popen([sys.executable, "-c", SMALL_BLOCKS, *words], stderr=subprocess.PIPE, text=True) as made:
            others = struck(made, victim, parts, len(kept) + more, chance)
            said = made.communicate(timeout=ranks.PATIENCE_S)[1]
        assert not psutil.wait_procs(others, timeout=60)[1], "workers outlive the preparation"
        if victim == "parent":
            assert made.returncode == -signal.SIGKILL
        else:
            assert made.returncode == 2, said
            assert "error: workers: got '3'; allowed: as many as there is memory for" in said
        assert not out.exists()
        found = {path: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
        assert kept.items() <= found.items(), "a finished part was made again"
        assert len(found) > len(kept)
        kept = found
    again = subprocess.run([sys.executable, "-c", SMALL_BLOCKS, *words], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert content(out) == content(whole("prepare")[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def struck(
    made: subprocess.Popen[str], victim: str, parts: Path, count: int, chance: random.Random
) -> list[psutil.Process]:
    """Kill the process or one of its workers, once there are so many parts and a moment later; returns its children."""
    deadline = time.monotonic() + ranks.PATIENCE_S
    while len(list(parts.glob("*.npz"))) < count:
        assert time.monotonic() < deadline
        assert made.poll() is None
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    others = psutil.Process(made.pid).children(recursive=True)
    workers = [one for one in others if any("spawn_main" in word for word in one.cmdline())]
    os.kill(made.pid if victim == "parent" else chance.choice(workers).pid, signal.SIGKILL)
    return others
