from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from teragpt.config import resolve
from teragpt.data import open_dataset
from teragpt.health.watch import Watch, lines, out_of_memory, where
from teragpt.launcher.environment import World
from tests.teragpt import ranks


class Sleepy:
    """A dataset whose third batch never comes to rank 1."""

    def __init__(self, good: Any) -> None:
        self.good = good

    def __getattr__(self, name: str) -> Any:
        return getattr(self.good, name)

    def batch(self, step: int, *rest: Any) -> Any:
        if step == 2 and os.environ["RANK"] == "1":
            time.sleep(600)
        return self.good.batch(step, *rest)


def sleepy(path: str, *, tokenizer: str = "") -> Sleepy:
    return Sleepy(open_dataset(path, tokenizer=tokenizer))


def test_the_places_with_the_fewest_ranks_are_told_first() -> None:
    told = list(lines({0: "optim.py:58 reduce", 1: "optim.py:58 reduce", 2: "data.py:9 read", 3: ""}))
    assert told == [
        "rank 3 tells nothing: dead or stopped",
        "rank 2 stands at data.py:9 read",
        "rank 0, 1 stands at optim.py:58 reduce",
    ]
    assert list(lines(dict.fromkeys(range(20), "x"))) == ["rank 0, 1, 2, 3, 4, 5, 6, 7 and 12 more stands at x"]


def test_a_place_is_the_innermost_function_of_this_package() -> None:
    assert where(sys._getframe()) == "outside of this package"
    assert where(None) == "outside of this package"


def test_a_run_that_steps_is_left_alone(tmp_path: Path) -> None:
    code, output = ranks.train({"out": tmp_path / "run", "steps": 3}, 2)
    assert code == 0, output
    assert not (tmp_path / "run" / "faults").exists()


def test_a_rank_that_stands_still_is_named_and_every_stack_is_kept(tmp_path: Path) -> None:
    settings = {"out": tmp_path / "run", "loader": "tests.teragpt.test_watch:sleepy", "step_timeout": 5}
    code, output = ranks.train(settings, 2)
    assert code == 1, output
    assert "no step in 5 s: rank 1 stands at batches.py" in output
    assert re.search(r"no step in 5 s: rank 0 stands at (parallel|pipeline|optim)\.py", output)
    kept = sorted((tmp_path / "run" / "faults").glob("*-stacks.txt"), key=lambda path: path.name[-12:])
    assert [path.name.partition("-rank-")[2] for path in kept] == ["0-stacks.txt", "1-stacks.txt"]
    assert "in batch" in kept[1].read_text()


@pytest.mark.unmeasured
def test_a_rank_that_is_stopped_is_named(tmp_path: Path) -> None:
    settings = {"out": tmp_path / "run", "step_timeout": 5, "steps": 10_000, "checkpoint_every": 10_000}
    third = re.compile("^step 3/", re.MULTILINE)
    code, output = ranks.train_and_signal(signal.SIGSTOP, lambda said: bool(third.search(said)), settings, 2)
    assert code == 1, output
    assert "no step in 5 s: rank 1 tells nothing: dead or stopped" in output


def test_a_rank_whose_peer_failed_names_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # as if on a node of its own, whose launcher does not know: the store that they met at cannot be reached either
    world = World(rank=1, world_size=2, master_addr="127.0.0.1", master_port=1)
    with pytest.raises(RuntimeError, match="closed"), Watch(world, resolve({"out": str(tmp_path)})):
        raise RuntimeError("Connection closed by peer")
    assert "a rank failed: rank 0 tells nothing: dead or stopped" in capfd.readouterr().err


def test_a_watch_that_was_closed_ends_nothing(tmp_path: Path) -> None:
    with Watch(World(), resolve({"out": str(tmp_path), "start_timeout": 1})) as watch:
        watch.close()
        time.sleep(0)
        watch.thread.join(ranks.PATIENCE_S)
    assert not watch.thread.is_alive()


def test_out_of_memory_is_a_sentence_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    card = type("Card", (), {"total_memory": 80_000_000_000})
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 79_400_000_000)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: card)
    first, second = out_of_memory(3, ["3-memory.pickle"])
    assert first.startswith("rank 3 is out of GPU memory: 79.4 GB of 80.0 GB were taken")
    assert "faults/3-memory.pickle" in second
