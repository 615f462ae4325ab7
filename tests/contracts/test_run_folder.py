"""What the control plane reads of a run folder is what the trainer means by it."""

from __future__ import annotations

import json
from pathlib import Path

from controlplane import runfolder
from controlplane.domain import chains
from controlplane.runfolder import last_checkpoint
from teragpt import checkpoint
from teragpt.storage import Disk


def test_the_same_settings_say_whether_a_checkpoints_tensors_fit() -> None:
    assert vars(chains)["TENSORS"] is vars(checkpoint)["TENSORS"]


def test_the_trainers_own_checkpoints_are_read_alike(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step, attempt, resumed in ((10, 1, 0), (30, 1, 0), (20, 2, 10), (25, 2, 10), (28, 3, 25)):
        folder = checkpoints / f"step-{step:08d}-attempt-{attempt}"
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(json.dumps({"step": step, "attempt": attempt}))
        (checkpoints / f"owner-{attempt}.json").write_text(json.dumps({"attempt": attempt, "resumed_from": resumed}))
    theirs = [one.step for one in checkpoint.published(Disk(tmp_path))]
    assert last_checkpoint(tmp_path) == theirs[-1] == 28
    assert len(list(runfolder._counting(tmp_path))) == len(theirs)
