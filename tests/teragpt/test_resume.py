"""docs/resume.md, row by row: what may change when a run goes on, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from teragpt.checkpoint import published
from teragpt.config import resolve
from teragpt.storage import Disk
from tests.teragpt import ranks


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of four steps on two ranks."""
    return shutil.copytree(trained, tmp_path / "run")


ROWS: list[tuple[dict[str, object], int]] = [
    ({"learning_rate": 0.005}, 1),
    ({"schedule": "wsd"}, 1),
    ({"weight_decay": 0.0, "clip": 0.5}, 1),
    ({"global_batch_tokens": 512}, 1),
    ({"micro_batch": 4}, 1),
    ({"context": 64}, 1),
    ({"precision": "fp64"}, 1),
    ({"seed": 1}, 1),
    ({"eval_every": 1, "keep_last": 5}, 1),
    ({"dp_replicate": 2}, 2),
]


@pytest.mark.parametrize(("change", "count"), ROWS, ids=[" ".join(change) for change, _ in ROWS])
def test_a_change_is_taken_told_and_recorded(run: Path, change: dict[str, object], count: int) -> None:
    code, output = ranks.train({"out": run, "steps": 6, **change}, count)
    assert code == 0, output
    assert list(ranks.curve(output)) == [5, 6]
    changes = json.loads((run / "checkpoints" / "owner-2.json").read_text())["changes"]
    assert changes["steps"] == [4, 6]
    assert {name: changes[name][1] for name in change} == change
    assert ("ranks" in changes) == (count != 2)
    assert "changed since then: {" in output


@pytest.mark.parametrize(
    "change", [{"dim": 64}, {"depth": 3}, {"num_tokens": 4096}, {"tied": False}, {"optimizer": "muon"}]
)
def test_what_tensors_follow_may_not_change(run: Path, change: dict[str, object]) -> None:
    code, output = ranks.train({"out": run, "steps": 6, **change})
    assert code == 2
    assert f"error: {next(iter(change))}: got " in output
    assert [one.step for one in published(Disk(run))] == [2, 4]


def test_other_data_takes_a_run_of_its_own(run: Path, tmp_path: Path) -> None:
    for meta in run.glob("checkpoints/step-*/meta.json"):
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "data": "another corpus"}))
    code, output = ranks.train({"out": run, "steps": 6})
    assert code == 2
    assert "data: got 'the embedded corpus'" in output
    code, output = ranks.train({"out": tmp_path / "new", "start_from": run, "steps": 6})
    assert code == 0, output
    changes = json.loads((tmp_path / "new" / "checkpoints" / "owner-1.json").read_text())["changes"]
    assert changes["data"][0] == "another corpus"


def test_a_decay_branches_from_any_checkpoint_of_a_constant_rate(tmp_path: Path) -> None:
    """Two branches of one run with schedule wsd: each decays from where it left, and the trunk goes on."""
    trunk = {"out": tmp_path / "trunk", "schedule": "wsd", "keep_last": 9, "checkpoint_every": 2}
    assert ranks.train({**trunk, "steps": 6, "decay_fraction": 0.0})[0] == 0
    rates = {}
    for step in (2, 4):
        out, start = tmp_path / f"branch-{step}", tmp_path / "trunk" / "checkpoints" / f"step-{step:08d}-attempt-1"
        settings = {
            "out": out,
            "start_from": start,
            "schedule": "wsd",
            "steps": step + 4,
            "decay_fraction": 4 / (step + 4),
        }
        code, output = ranks.train(settings)
        assert code == 0, output
        points = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        rates[step] = [(point["step"], point["lr"]) for point in points if "lr" in point]
    for step, branch in rates.items():
        assert [at for at, _ in branch] == list(range(step + 1, step + 5))
        assert branch[0][1] == pytest.approx(0.01)
        assert [rate for _, rate in branch] == sorted((rate for _, rate in branch), reverse=True)
        assert branch[-1][1] < 0.004
    assert [one.step for one in published(Disk(tmp_path / "trunk"))] == [2, 4, 6]


@pytest.mark.parametrize(("made", "size"), [("adamw", "124m"), ("muon", "tiny")])
def test_a_run_that_starts_from_another_keeps_its_optimizer_unless_another_is_given(
    run: Path, tmp_path: Path, made: str, size: str
) -> None:
    """Each size with another default than the checkpoint's optimizer."""
    assert resolve({"size": size}).optimizer != made
    begun = run
    if made == "muon":
        begun = tmp_path / "begun"
        assert ranks.train({"out": begun, "optimizer": made, "steps": 4})[0] == 0
    asked = {"size": size, "tied": True, "start_from": begun, "steps": 6}
    other = resolve({"size": size}).optimizer
    code, output = ranks.train({**asked, "out": tmp_path / "refused", "optimizer": other})
    assert (code, output.count("error: ")) == (2, 1), output
    assert f"error: optimizer: got '{other}'; allowed: '{made}', as in the checkpoint {begun}" in output
    code, output = ranks.train({**asked, "out": tmp_path / "on"})
    assert code == 0, output
    assert f"optimizer {made}, as in the checkpoint that it goes on from" in output
    assert list(ranks.curve(output)) == [5, 6]
    assert json.loads((tmp_path / "on" / "config.json").read_text())["optimizer"] == made
    assert not published(Disk(tmp_path / "refused"))


def test_state_that_the_optimizer_of_a_checkpoint_cannot_have_is_refused(tmp_path: Path) -> None:
    assert ranks.train({"out": tmp_path / "muon", "optimizer": "muon", "steps": 2})[0] == 0
    code, output = ranks.train({"out": tmp_path / "on", "start_from": tmp_path / "muon", "state_dtype": "bf16"}, 2)
    assert code == 2
    assert output.count("state_dtype: got 'bf16'; allowed: state_dtype fp32 with optimizer muon") == 1
    assert not (tmp_path / "on").exists()
