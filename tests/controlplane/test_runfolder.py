from __future__ import annotations

import json
from pathlib import Path

from controlplane.runfolder import last_checkpoint, last_claim, metric_lines


def line(**values: object) -> str:
    return json.dumps({"seq": 1, "attempt": 1, "step": 1, "time": 1.0, **values})


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    assert (last_checkpoint(folder), last_claim(folder), list(metric_lines(folder, 1, 0))) == (None, 0, [])


def test_only_lines_that_make_sense_are_points_of_their_attempt(tmp_path: Path) -> None:
    lines = [
        line(seq=1),
        line(seq=2),
        line(seq=3, attempt=2),
        "nonsense",
        "[1]",
        line(seq="4"),
        line(step=None),
        line(time="x"),
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, line(seq=9), '{"seq": 10, "att']))
    assert [point["seq"] for point in metric_lines(tmp_path, 1, 1)] == [2, 9]


def test_checkpoints_that_are_torn_misnamed_or_overruled_do_not_count(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for name, whole in (("step-10-attempt-1", True), ("step-20-attempt-1", False), ("step-x-attempt-1", True)):
        (checkpoints / name).mkdir(parents=True)
        if whole:
            (checkpoints / name / "meta.json").write_text("{}")
    (checkpoints / "owner-1.json").write_text('{"attempt": 1, "resumed_from": 0}')
    (checkpoints / "owner-x.json").write_text("nonsense")
    assert last_checkpoint(tmp_path) == 10
    (checkpoints / "owner-2.json").write_text('{"attempt": 2, "resumed_from": 0}')
    assert last_checkpoint(tmp_path) is None
    assert last_claim(tmp_path) == 2
