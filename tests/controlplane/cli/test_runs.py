from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from controlplane.cli.runs import pairs, place

from .conftest import Teragpt


def test_a_run_goes_from_its_size_to_its_end(teragpt: Teragpt, finished: str) -> None:
    shown = json.loads(teragpt("show", finished, "--json"))
    assert (shown["phase"], shown["name"], shown["progress"]["step"]) == ("succeeded", "first", 2)
    assert shown["resolved"]["config"]["steps"] == 2


def test_runs_are_listed_with_their_progress(teragpt: Teragpt, finished: str) -> None:
    row = next(line.split() for line in teragpt("runs").splitlines() if line.startswith(finished))
    assert row[1:5] == ["first", "tiny", "succeeded", "2/2"]
    assert float(row[5]) > 1
    assert [run["id"] for run in json.loads(teragpt("runs", "--json", "--label", "team=lm"))] == [finished]
    assert json.loads(teragpt("runs", "--json", "--phase", "failed")) == []
    assert json.loads(teragpt("runs", "--json", "-q", "nothing-like-it")) == []


def test_a_finished_run_is_found_by_its_name(teragpt: Teragpt, finished: str) -> None:
    printed = teragpt("show", "first")
    assert finished in printed
    assert "resolved.config.learning_rate" in printed
    assert "succeeded" in printed


def test_the_manifest_is_shown(teragpt: Teragpt, finished: str) -> None:
    assert json.loads(teragpt("show", finished, "--manifest"))["kind"] == "PyTorchJob"


def test_logs_are_those_of_the_rank_asked_for(teragpt: Teragpt, finished: str) -> None:
    lines = teragpt("logs", finished).splitlines()
    assert any(line.startswith("step 2/2 | loss ") for line in lines)
    assert teragpt("logs", finished, "--tail", "1").splitlines() == lines[-1:]
    assert teragpt("logs", "first", "--follow").splitlines() == lines


def test_following_a_run_that_has_ended_returns_at_once(teragpt: Teragpt, finished: str) -> None:
    assert teragpt("show", finished, "--follow").startswith("succeeded | step 2/2")


def test_a_run_is_cancelled_and_retried(teragpt: Teragpt) -> None:
    made = teragpt("run", "tiny", "--name", "long", "--processes", "1", "--set", "steps=5000")
    assert made.startswith("long is run_")
    run = made.split()[2].rstrip(",")
    assert f"next: teragpt logs -f {run}" in made
    assert teragpt("cancel", "long", "--follow") == f"{run} cancelled\n"
    assert json.loads(teragpt("cancel", run, "--json"))[0]["phase"] == "cancelled"
    again = json.loads(teragpt("retry", run, "--json"))
    assert again["retry_of"] == run
    error = teragpt("retry", again["id"], code=1)
    assert error.startswith("error: ")
    teragpt("cancel", again["id"], "--follow")


def test_a_followed_run_that_fails_is_exit_code_5_with_the_command_that_tells_why(
    teragpt: Teragpt, tmp_path: Path
) -> None:
    spec = {"size": "tiny", "limits": {"max_restarts": 0}, "train": {"loader": "json:loads"}}  # no dataset's loader
    (tmp_path / "spec.json").write_text(json.dumps(spec), "utf-8")
    error = teragpt("run", "--file", str(tmp_path / "spec.json"), "--processes", "1", "--follow", code=5)
    assert " failed: " in error
    assert "; try: teragpt logs run_" in error


def test_preview_makes_nothing(teragpt: Teragpt) -> None:
    before = json.loads(teragpt("runs", "--json"))
    preview = json.loads(teragpt("run", "124m", "--processes", "1", "--preview", "--json"))
    assert preview["manifest"]["kind"] == "PyTorchJob"
    assert "124m" in teragpt("run", "124m", "--processes", "1", "--preview")
    assert json.loads(teragpt("runs", "--json")) == before


def test_a_spec_comes_from_a_file_or_stdin_and_options_win_over_it(
    teragpt: Teragpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"size": "124m", "train": {"steps": 7, "seed": 3}, "compute": {"processes_per_node": 1}}
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec), "utf-8")
    shown = json.loads(teragpt("run", "tiny", "--file", str(file), "--set", "steps=9", "--preview", "--json"))
    config = shown["plan"]["resolved"]["config"]
    assert (config["size"], config["steps"], config["seed"]) == ("tiny", 9, 3)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(spec)))
    shown = json.loads(teragpt("run", "--file", "-", "--preview", "--json"))
    assert shown["plan"]["resolved"]["config"]["steps"] == 7


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "5g"], "/size: got '5g'; allowed: tiny, 111m"),
        (["run", "tiny", "--set", "steps=-1"], "/train/steps: "),
        (["run", "tiny", "--set", "stepz=1"], "/train/stepz: "),
        (["run", "tiny", "--nodes", "0"], "/compute/nodes: "),
        (
            ["run", "tiny", "--set", "model=no_such:Model"],
            "/train/model: got 'no_such:Model'; allowed: module:attribute",
        ),
        (["run", "tiny", "--set", "steps"], "--set: got 'steps'; allowed: key=value"),
        (["run", "--file", "no-such.json"], "--file: no-such.json is no readable JSON"),
        (["plan", "5g"], "/size: got '5g'"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(teragpt: Teragpt, arguments: list[str], sentence: str) -> None:
    error = teragpt(*arguments, code=2)
    assert error.startswith(f"error: {sentence}")
    assert error.count("\n") == 1


def test_a_spec_that_is_no_object_is_refused(teragpt: Teragpt, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("[]", "utf-8")
    assert "holds a list; allowed: an object" in teragpt("run", "--file", str(tmp_path / "spec.json"), code=2)


@pytest.mark.parametrize("command", ["show", "logs", "cancel", "retry", "sample"])
def test_an_unknown_run_is_exit_code_4(teragpt: Teragpt, command: str) -> None:
    error = teragpt(command, "no-such-run", code=4)
    assert error == "error: no run has the id or the name 'no-such-run'; try: teragpt runs\n"


def test_sizes_are_listed(teragpt: Teragpt) -> None:
    assert len(json.loads(teragpt("sizes", "--json"))) == len(teragpt("sizes").splitlines()) - 1


def test_a_plan_says_what_a_size_takes(teragpt: Teragpt) -> None:
    plan = json.loads(teragpt("plan", "124m", "--processes", "2", "--set", "seed=1", "--json"))
    assert plan
    assert "parameters" in teragpt("plan", "124m", "--processes", "2")


def test_setting_names_may_be_written_with_dashes() -> None:
    assert pairs("--set", ["eval-every=3", "data=a=b"]) == [("eval_every", "3"), ("data", "a=b")]
    assert pairs("--label", ["my-team=lm"]) == [("my-team", "lm")]


def test_folders_are_named_as_seen_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place("data/mine") == str(tmp_path / "data/mine")
    assert place("s3://bucket/mine") == "s3://bucket/mine"
    assert place(None) is None
