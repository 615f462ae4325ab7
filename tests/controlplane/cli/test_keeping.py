from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.errors import CliError
from controlplane.cli.moments import moment

from .conftest import DEADLINE_S, Teragpt


def test_a_run_is_cloned_changed_deleted_and_purged_after_it_was_shown(teragpt: Teragpt, finished: str) -> None:
    clone = ["clone", "first", "--name", "second", "--set", "seed=5", "--label", "stage=2", "--json"]
    run = json.loads(teragpt(*clone))
    assert (run["clone_of"], run["spec"]["train"]["seed"], run["spec"]["train"]["steps"]) == (finished, 5, 2)
    assert run["labels"] == {"team": "lm", "stage": "2"}
    change = ["change", "second", "--label", "stage=3", "--no-label", "team", "--notes", "keep", "--pin"]
    assert teragpt(*change) == f"{run['id']} changed\n"
    assert teragpt(*change) == f"{run['id']} was so already\n"
    assert [one["notes"] for one in json.loads(teragpt("runs", "--pinned", "-q", "stage=3", "--json"))] == ["keep"]
    assert json.loads(teragpt("runs", "--cluster", "elsewhere", "--json")) == []
    assert json.loads(teragpt("change", "second", "--unpin", "--notes", "", "--json"))["notes"] is None
    teragpt("cancel", "second", "--follow")
    assert "cannot be given other limits" in teragpt("change", "second", "--limit", "max_restarts=5", code=1)
    assert f"teragpt purge {run['id']}" in teragpt("delete", "second")
    assert teragpt("runs", "--deleted").splitlines()[1].startswith(run["id"])
    assert teragpt("undelete", run["id"]) == f"{run['id']} is back\n"
    teragpt("delete", run["id"])
    shown = teragpt("purge", run["id"])
    assert f"nothing was removed; next: teragpt purge --yes {run['id']}" in shown
    assert run["folder"] in shown
    assert teragpt("purge", "--yes", run["id"]).splitlines()[-1] == "removed for good"
    assert not Path(run["folder"]).exists()
    assert "there is no deleted run" in teragpt("purge", run["id"], code=4)


def test_a_run_saves_when_it_is_asked_to_and_goes_on(teragpt: Teragpt) -> None:
    settings = ["--set", "steps=100000", "--set", "checkpoint_every=100000", "--set", "eval_sequences=2"]
    run = json.loads(teragpt("run", "tiny", "--name", "asked", "--processes", "1", *settings, "--json"))["id"]
    try:
        until(lambda: json.loads(teragpt("show", run, "--json"))["progress"])
        assert teragpt("save", "asked") == f"{run} is asked for a checkpoint; it has none yet\n"
        (saved,) = until(lambda: json.loads(teragpt("checkpoints", run, "--json"))["items"])
        until(lambda: json.loads(teragpt("show", run, "--json"))["progress"]["step"] > saved["step"])
        until(lambda: f"its last is of step {saved['step']}" in teragpt("save", run))
    finally:
        teragpt("cancel", run, "--follow")
    refused = teragpt("save", run, code=1)
    assert f"{run} is cancelled, so that nobody can write a checkpoint now: the last one is of step" in refused


def until(look: Callable[[], Any]) -> Any:
    """What a look shows once it shows something."""
    deadline = time.monotonic() + DEADLINE_S
    while not (seen := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return seen


def test_checkpoints_and_hours_of_a_finished_run_are_listed(teragpt: Teragpt, finished: str) -> None:
    told = json.loads(teragpt("checkpoints", "first", "--json"))
    last = told["items"][-1]
    assert (last["step"], last["attempt"], last["ranks"], Path(last["folder"]).is_dir()) == (2, 1, 1, True)
    head, *rows = teragpt("checkpoints", finished).splitlines()
    assert head.split() == ["step", "attempt", "written", "size", "folder"]
    assert rows[-1].split()[0] == "2"
    table = teragpt("usage", "--by", "label:team", "--since", "1h").splitlines()
    assert table[0].split() == ["label:team", "GPU-hours", "CPU-core-hours", "runs", "attempts"]
    assert table[-1].split()[0] == "all"
    found = json.loads(teragpt("usage", "--json"))
    assert [one["key"] for one in found["items"]] == ["local"]
    assert found["total"]["cpu_core_hours"] > 0


def test_stacks_of_a_run_are_shown(teragpt: Teragpt, finished: str) -> None:
    assert teragpt("stacks", "first") == "no stacks were kept\n"
    folder = Path(json.loads(teragpt("stacks", finished, "--json"))["folder"])
    (folder / "faults").mkdir()
    (folder / "faults" / "attempt-1-stacks.txt").write_text("== rank 0\n    all_reduce\n")
    head, *rest = teragpt("stacks", "first").splitlines()
    assert head.startswith("attempt-1-stacks.txt, ")
    assert rest[:3] == ["", "== rank 0", "    all_reduce"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runs", "--since", "yesterday"], "--since: got 'yesterday'; allowed: a date or time"),
        (["runs", "--deleted", "--pinned"], "--deleted: got another filter too"),
        (
            ["change", "first", "--limit", "max_restarts=many"],
            "--limit: got max_restarts=many; allowed: a whole number",
        ),
        (["change", "first", "--limit", "what=1"], "/limits/what: "),
        (["usage", "--by", "team"], "?by: "),
    ],
)
@pytest.mark.usefixtures("finished")
def test_bad_input_is_one_line_that_names_the_option(teragpt: Teragpt, arguments: list[str], sentence: str) -> None:
    error = teragpt(*arguments, code=2)
    assert error.startswith(f"error: {sentence}")
    assert error.count("\n") == 1


def test_moments_are_dates_times_and_how_long_ago() -> None:
    now = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
    assert moment("--since", None) is None
    assert moment("--since", "90m", now) == "2026-11-28T10:30:00Z"
    assert moment("--since", "2w", now) == "2026-11-14T12:00:00Z"
    assert moment("--since", "2026-11-24T12:30+02:00") == "2026-11-24T10:30:00Z"
    here = datetime(2026, 11, 24).astimezone().astimezone(UTC)
    assert moment("--since", "2026-11-24") == here.isoformat().replace("+00:00", "Z")
    for bad in ("7", "7y", "", "999999w", "2026-13-01"):
        with pytest.raises(CliError, match="--since: got"):
            moment("--since", bad, now)
