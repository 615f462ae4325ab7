from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from teragpt.checkpoint import published
from teragpt.launcher.signals import NOTHING, SAVE, STOP, Requests
from teragpt.storage import Disk
from tests.teragpt import ranks

ENDLESS = {**ranks.SMALL, "steps": 100_000, "checkpoint_every": 100_000, "eval_every": 100_000}


def test_signals_are_noted_and_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with Requests(10.0, 0) as requests:
        assert requests.asked == NOTHING
        signal.raise_signal(signal.SIGUSR1)
        assert requests.asked == SAVE
        requests.saved()
        assert requests.asked == NOTHING
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        requests.saved()
        assert requests.asked == STOP
        assert 0 < requests.seconds_left() <= 9.0
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1))


def test_a_million_ranks_that_want_a_checkpoint_do_not_stop_the_job() -> None:
    assert SAVE * (1 << 20) < STOP


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.deep)])
def test_a_checkpoint_is_written_when_asked_for_and_training_goes_on(tmp_path: Path, count: int) -> None:
    process = ranks.start(["-m", "teragpt.train", *ranks.arguments({**ENDLESS, "out": tmp_path})], count)
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("step 2/"))
    process.send_signal(signal.SIGUSR1)  # to the launcher, where there is one
    ranks.wait_for(tmp_path, "checkpoints/step-*/meta.json", process)
    saved = published(Disk(tmp_path))[-1].step
    next(line for line in process.stdout if line.startswith(f"step {saved + 5}/"))
    assert [one.step for one in published(Disk(tmp_path))] == [saved]  # one is enough
    process.terminate()
    output, _ = process.communicate(timeout=ranks.PATIENCE_S)
    assert process.returncode == 143, output


def test_a_run_whose_time_is_up_stops_with_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    code, output = ranks.train({**ENDLESS, "out": tmp_path, "max_seconds": 1})
    assert code == 143, output
    stopped = published(Disk(tmp_path))[-1].step
    assert f"told to at step {stopped}" in output
    code, output = ranks.train({**ENDLESS, "out": tmp_path, "max_seconds": 1})
    assert code == 143, output
    assert f"resumed from step {stopped}" in output
    assert published(Disk(tmp_path))[-1].step > stopped


def test_norms_of_layers_add_up_to_the_norm_on_any_mesh(tmp_path: Path) -> None:
    found = []
    for count in (1, 2):
        code, output = ranks.train({"out": tmp_path / str(count), "steps": 2, "log_norms": True}, count)
        assert code == 0, output
        points = map(json.loads, (tmp_path / str(count) / "metrics.jsonl").read_text().splitlines())
        found.append([point for point in points if "loss" in point])
    for one, two in zip(*found, strict=True):
        norms = {name: value for name, value in one.items() if name.startswith("grad_norm/")}
        assert list(norms) == ["grad_norm/layers.0", "grad_norm/layers.1", "grad_norm/rest"]
        assert sum(value**2 for value in norms.values()) ** 0.5 == pytest.approx(one["grad_norm"], rel=1e-4)
        assert all(two[name] == pytest.approx(value, rel=1e-3) for name, value in norms.items())
