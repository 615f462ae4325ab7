from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.tensor import DTensor

from teragpt.checkpoint import Checkpoints, SaveFailed, Superseded, published
from teragpt.config import Config, ConfigError, resolve
from teragpt.inference import trained as trained_model
from teragpt.launcher.termination import crash
from teragpt.storage import Disk
from tests.teragpt import ranks


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may break."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def config(folder: Path, **settings: object) -> Config:
    return resolve({**ranks.SMALL, "out": str(folder), **settings})


def state(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3, 2), value), "moment": torch.full((3,), value)}


def saved(checkpoints: Checkpoints, *steps: int) -> list[int]:
    told: list[int] = []
    for step in steps:
        checkpoints.save(step, state(float(step)), {}, told.append)
    checkpoints.wait()
    return told


@pytest.mark.usefixtures("alone")
def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    first = Checkpoints(config(tmp_path), "data", None)
    assert (first.attempt, first.start) == (1, None)
    value = state(7.0)
    first.save(5, value, {"progress": {"step": 5}}, print)
    value["weight"].zero_()  # the save has its own copy
    first.finish()
    second = Checkpoints(config(tmp_path), "data", None)
    assert second.attempt == 2
    assert second.start is not None
    assert second.start.meta["progress"] == {"step": 5}
    loaded = state(0.0)
    second.load(second.start, loaded)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state(7.0).items())


@pytest.mark.usefixtures("alone")
def test_the_newest_and_the_multiples_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(config(tmp_path, keep_last=2, keep_every=4), "data", None)
    torn = tmp_path / "checkpoints" / "step-00000001-attempt-1"
    torn.mkdir()
    assert saved(checkpoints, 2, 4, 6, 8, 10) == [2, 4, 6, 8, 10]
    assert [one.step for one in published(Disk(tmp_path))] == [4, 8, 10]
    assert not torn.exists()
    newest = checkpoints.latest()
    assert newest is not None
    assert newest.step == 10


def test_a_checkpoint_without_its_marker_does_not_count(run: Path) -> None:
    assert [one.step for one in published(Disk(run))] == [2, 4]
    (run / "checkpoints" / "step-00000004-attempt-1" / "meta.json").unlink()
    assert [one.step for one in published(Disk(run))] == [2]


@pytest.mark.usefixtures("alone")
def test_what_a_zombie_publishes_past_its_successors_start_is_ignored(tmp_path: Path) -> None:
    zombie = Checkpoints(config(tmp_path), "data", None)
    saved(zombie, 3)
    successor = Checkpoints(config(tmp_path), "data", None)
    folder = tmp_path / "checkpoints" / "step-00000009-attempt-1"
    shutil.copytree(tmp_path / "checkpoints" / "step-00000003-attempt-1", folder)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "step": 9}))
    assert [one.step for one in published(Disk(tmp_path))] == [3]
    with pytest.raises(Superseded):
        saved(zombie, 12)
    zombie.looked = 0.0
    assert zombie.superseded()
    assert not successor.superseded()
    assert [one.step for one in published(Disk(tmp_path))] == [3]


@pytest.mark.usefixtures("alone")
def test_an_attempt_number_is_claimed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoints(config(tmp_path), "data", 4)
    with pytest.raises(Superseded, match="attempt 4 has"):
        Checkpoints(config(tmp_path), "data", 3)
    monkeypatch.setattr(Disk, "entries", lambda _: {})  # as if both had looked before either wrote
    with pytest.raises(Superseded, match="claimed by another process"):
        Checkpoints(config(tmp_path), "data", 4)


@pytest.mark.usefixtures("alone")
def test_a_disk_that_is_full_at_the_start_may_have_room_later_and_is_no_bad_setting(tmp_path: Path) -> None:
    with mock.patch.object(Disk, "create", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(SaveFailed, match="No space left on device") as failed:
            Checkpoints(config(tmp_path), "data", None)
        assert crash(str(failed.value)) == "DiskFull"


@pytest.mark.usefixtures("alone")
def test_a_save_that_fails_is_told_and_leaves_the_last_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(config(tmp_path), "data", None)
    saved(checkpoints, 1)
    (tmp_path / "checkpoints" / "step-00000002-attempt-1").write_text("in the way")
    with pytest.raises(Exception, match="step-00000002"):
        saved(checkpoints, 2)
    assert [one.step for one in published(Disk(tmp_path))] == [1]
    saved(checkpoints, 3)
    assert published(Disk(tmp_path))[-1].step == 3


def refusal(folder: Path, **settings: object) -> str:
    code: int
    output: str
    code, output = ranks.train({"out": folder, "steps": 6, **settings})
    assert code == 2, output
    return output


def test_a_missing_or_cut_shard_is_refused_by_its_name(run: Path) -> None:
    shard = next((run / "checkpoints" / "step-00000004-attempt-1").glob("__1_*.distcp"))
    size = shard.stat().st_size
    os.truncate(shard, size // 2)
    assert f"{shard}: {size // 2} bytes" in refusal(run)
    shard.unlink()
    assert f"{shard}: missing" in refusal(run)
    with pytest.raises(ConfigError, match="missing"):
        trained_model.load(run)


def test_another_sizes_shapes_other_data_and_a_broken_marker_are_refused(run: Path, tmp_path: Path) -> None:
    assert "dim: got 64; allowed: 32, as in the checkpoint" in refusal(run, dim=64)
    meta = run / "checkpoints" / "step-00000004-attempt-1" / "meta.json"
    whole = json.loads(meta.read_text())
    meta.write_text(json.dumps({**whole, "data": "another"}))
    assert "data: got 'the embedded corpus'" in refusal(run)
    meta.write_text("{")
    assert "meta.json" in refusal(run)
    assert "start_from" in refusal(tmp_path / "new", start_from=tmp_path / "empty")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "out: got" in refusal(tmp_path / "file" / "run")


def test_a_folder_without_a_checkpoint_has_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a run folder with a published checkpoint"):
        trained_model.load(tmp_path)


def test_the_loaded_model_is_the_trained_one_whatever_its_mesh(trained: Path) -> None:
    model, tokenizer, settings = trained_model.load(trained)
    assert settings.dim == 32
    assert tokenizer.decode(tokenizer.encode("def main():\n")) == "def main():\n"
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert not model.training
