from __future__ import annotations

import os
import pty
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import cast

import pytest

from controlplane.cli import follow
from controlplane.cli.errors import CliError, Code
from controlplane.client import Run, progress

PROGRESS = {"step": 20, "steps": 256, "loss": 5.125, "val_loss": 5.0, "tokens_per_s": 35_120.4, "eta_s": 41.0}


def run(**more: object) -> Run:
    plain = {
        "id": "run_1",
        "spec": {"size": "tiny"},
        "phase": "running",
        "reason": None,
        "message": None,
        "attempt": 1,
        "progress": None,
    }
    return cast("Run", {**plain, **more})


def test_numbers_are_those_that_are_known() -> None:
    assert progress.numbers(run()) == []
    assert progress.numbers(run(progress=PROGRESS)) == [
        "step 20/256",
        "loss 5.1250",
        "val 5.0000",
        "35,120 tok/s",
        "eta 0:41",
    ]
    nothing_yet = dict.fromkeys(PROGRESS) | {"step": 0, "steps": 256}
    assert progress.numbers(run(progress=nothing_yet)) == ["step 0/256"]


def test_the_head_says_the_phase_the_attempt_and_why_it_waits() -> None:
    assert progress.told(run()) == "running"
    assert progress.told(run(attempt=2)) == "running, attempt 2"
    waiting = run(phase="pending", reason="Queued", message="needs 2 cpus, 0 free")
    assert progress.told(waiting) == "pending (needs 2 cpus, 0 free)"


def test_lines_are_printed_at_changes_of_phase_and_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Iterator[float] = iter([0.0, 100.0, 100.5, 106.0, 106.0])
    monkeypatch.setattr("controlplane.client.progress.time.monotonic", lambda: next(clock, 106.0))
    show = progress.lines()
    show(run(phase="queued"))
    show(run(progress=PROGRESS))
    show(run(progress=PROGRESS))
    show(run(progress={**PROGRESS, "step": 21}))
    show(run(progress={**PROGRESS, "step": 40}))
    show(run(phase="succeeded", progress={**PROGRESS, "step": 256}))
    printed = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()]
    assert printed[0] == ["queued"]
    assert printed[1] == ["running", "step 20/256"]
    assert printed[-1] == ["succeeded", "step 256/256"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with TextIOWrapper(os.fdopen(slave, "wb", buffering=0), write_through=True) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with progress.screen() as show:
            show(run(progress=PROGRESS))
        monkeypatch.undo()
        drawn = ""
        while "loss" not in drawn:
            drawn += os.read(master, 1 << 16).decode("utf-8", "replace")
    os.close(master)
    assert "step 20/256  loss 5.1250" in drawn


@pytest.mark.parametrize(
    ("ended", "sentence"),
    [
        (
            run(phase="failed", reason="Diverged", message="loss nan\n at step 3"),
            "run run_1 failed: loss nan at step 3",
        ),
        (run(phase="cancelled"), "run run_1 cancelled"),
    ],
)
def test_a_run_that_did_not_end_well_is_exit_code_5(ended: Run, sentence: str) -> None:
    with pytest.raises(CliError) as caught:
        follow.check(ended)
    assert caught.value.code == Code.RUN_FAILED
    assert str(caught.value) == f"{sentence}; try: teragpt logs run_1"


@pytest.mark.parametrize(
    ("name", "called"), [(None, "run_1"), ("first", "first"), ("Erster Lauf", "'Erster Lauf'"), ("-f", "run_1")]
)
def test_a_run_is_called_by_the_name_that_its_user_gave(name: str | None, called: str) -> None:
    assert follow.called(run(name="tiny-1", spec={"size": "tiny", **({"name": name} if name else {})})) == called


def test_a_run_that_ended_well_is_no_error() -> None:
    follow.check(run(phase="succeeded"))
