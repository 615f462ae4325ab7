from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from controlplane.cli import output
from controlplane.cli.runs import pairs, place, reads, train

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
    rows = dict(line.split(None, 1) for line in printed.split("\n\n")[0].splitlines())
    assert rows["id"].strip() == finished
    assert rows["progress.step"].strip() == "2 of 2"
    assert rows["progress.memory"].strip().endswith((" MB", " GB"))
    assert rows["train.steps"].strip() == "2"
    assert rows["finished_at"].strip().endswith(" ago")
    assert "desired" not in rows  # it has ended
    assert "succeeded" in printed
    assert "resolved.config.learning_rate" not in printed
    assert "resolved.config.learning_rate" in teragpt("show", "first", "--all")
    assert 0 < float(rows["measured_over_planned.peak_memory"]) < 3


def test_the_manifest_is_shown(teragpt: Teragpt, finished: str) -> None:
    assert json.loads(teragpt("show", finished, "--manifest"))["kind"] == "PyTorchJob"


def test_pods_are_listed_after_they_are_gone(teragpt: Teragpt, finished: str) -> None:
    head, row, note = teragpt("pods", "first").splitlines()
    assert head.split() == ["rank", "name", "phase", "node", "reason", "exit_code", "message"]
    assert [row.split()[place] for place in (0, 2, 5)] == ["0", "Succeeded", "0"]
    assert note == "as last seen"
    told = json.loads(teragpt("pods", finished, "--attempt", "1", "--json"))
    assert told["items"][0]["started_at"] < told["items"][0]["finished_at"]


def test_logs_are_those_of_the_rank_asked_for(teragpt: Teragpt, finished: str) -> None:
    lines = teragpt("logs", finished).splitlines()
    assert any(line.startswith("step 2/2 | loss ") for line in lines)
    assert teragpt("logs", finished, "--tail", "1").splitlines() == lines[-1:]
    assert teragpt("logs", "first", "--follow").splitlines() == lines
    found = teragpt("logs", "first", "--search", lines[-1]).splitlines()
    assert found[-1].startswith("attempt 1 rank 0 line ")
    assert found[-1].endswith(f": {lines[-1]}")
    assert teragpt("logs", "first", "--search", lines[-1].swapcase()) == ""
    assert teragpt("logs", "first", "--search", lines[-1].swapcase(), "-i").splitlines() == found
    assert teragpt("logs", "first", "--search", "no such words") == ""
    assert teragpt("logs", "first", "--grep", f"^{re.escape(lines[-1])}$").splitlines() == found
    assert teragpt("logs", "first", "--since", "1h", "--rank", "0").splitlines()[-1] == found[-1]
    assert teragpt("logs", "first", "--until", "2020-01-01") == ""
    assert "?search: got '('; allowed: a regular expression" in teragpt("logs", "first", "--grep", "(", code=2)
    assert "--since goes without --tail" in teragpt("logs", "first", "--since", "1h", "--tail", "1", code=2)
    assert "--grep goes without --search" in teragpt("logs", "first", "--grep", "x", "--search", "x", code=2)
    assert "--ignore-case goes with --search" in teragpt("logs", "first", "--ignore-case", code=2)
    assert "--search goes without --tail" in teragpt("logs", "first", "--search", "x", "--tail", "1", code=2)


def test_following_a_run_that_has_ended_returns_at_once(teragpt: Teragpt, finished: str) -> None:
    assert teragpt("show", finished, "--follow").startswith("succeeded | step 2/2")


def test_a_run_is_suspended_resumed_cancelled_and_retried(teragpt: Teragpt) -> None:
    made = teragpt("run", "tiny", "--name", "long", "--processes", "1", "--set", "steps=5000")
    assert made.startswith("long is run_")
    run = made.split()[2].rstrip(",")
    assert "next: teragpt logs -f long | teragpt cancel long" in made
    assert "allowed: 0, the only rank" in teragpt("logs", "long", "--rank", "7", code=4)
    assert teragpt("suspend", "long", "--follow") == f"{run} suspended\n"
    assert json.loads(teragpt("show", "long", "--json"))["desired"] == "suspended"
    assert teragpt("resume", "long").startswith(f"{run} ")
    assert teragpt("cancel", "long", "--follow") == f"{run} cancelled\n"
    assert teragpt("suspend", "long", code=1).startswith("error: ")
    assert teragpt("cancel", "long") == f"{run} had ended before: cancelled\n"
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
    error = teragpt("run", "--config", str(tmp_path / "spec.json"), "--processes", "1", "--follow", code=5)
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
    shown = json.loads(teragpt("run", "tiny", "--config", str(file), "--set", "steps=9", "--preview", "--json"))
    config = shown["plan"]["resolved"]["config"]
    assert (config["size"], config["steps"], config["seed"]) == ("tiny", 9, 3)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(spec)))
    shown = json.loads(teragpt("run", "--config", "-", "--preview", "--json"))
    assert shown["plan"]["resolved"]["config"]["steps"] == 7


def test_a_spec_may_come_as_the_trainers_settings(teragpt: Teragpt, tmp_path: Path) -> None:
    settings = {"size": "111m", "steps": 7, "seed": 3, "out": str(tmp_path / "run"), "data": "", "checkpoint_every": 2}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings), "utf-8")
    shown = json.loads(teragpt("run", "--config", str(file), "--processes", "1", "--preview", "--json"))
    config = shown["plan"]["resolved"]["config"]
    assert {name: config[name] for name in settings} == settings


def test_settings_that_name_what_is_here_are_seen_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exported").mkdir()
    assert train(["tokenizer=exported", "start-from=nowhere"]) == {
        "tokenizer": str(tmp_path / "exported"),
        "start_from": "nowhere",
    }
    assert train(["tokenizer=gpt2", "steps=3"]) == {"tokenizer": "gpt2", "steps": 3}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "5g"], "/size: got '5g'; allowed: tiny, 111m"),
        (["run", "tiny", "--set", "steps=-1"], "/train/steps: got -1; allowed: a whole number from 1"),
        (["run", "tiny", "--set", "stepz=1"], "/train/stepz: there is no such setting; did you mean steps? try: "),
        (["run", "tiny", "--nodes", "0"], "/compute/nodes: "),
        (
            ["run", "tiny", "--set", "model=no_such:Model"],
            "/train/model: got 'no_such:Model'; allowed: module:attribute",
        ),
        (["run", "tiny", "--set", "steps"], "--set: got 'steps'; allowed: key=value"),
        (["run", "--config", "no-such.json"], "--config: no-such.json cannot be read (No such file"),
        (["run", "tiny", "--set", "learning_rate=NaN"], "/train/learning_rate: got nan; allowed: finite numbers"),
        (["run", "tiny", "--set", "learning_rate=1e999"], "/train/learning_rate: got inf; allowed: finite numbers"),
        (["run", "tiny", "--set", f"steps={'9' * 5000}"], "/train/steps: got '999"),
        (["run", "tiny", "--set", f"steps={'[' * 100_000}"], "/train/steps: got '[[["),
        (["run", "tiny", "--name", "a\udcff"], "/name: got half of a surrogate pair; allowed: whole characters"),
        (["show", "a\udcff"], "got 'a\\udcff'; allowed: text in UTF-8"),
        (["runs", "--query", "a\udcff"], "got 'a\\udcff'; allowed: text in UTF-8"),
        (["plan", "5g"], "/size: got '5g'"),
        (["run", "tiny", "--set", "=1"], "--set: got '=1'; allowed: key=value"),
        (["run", "tiny", "--label", "=1"], "--label: got '=1'; allowed: key=value"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(teragpt: Teragpt, arguments: list[str], sentence: str) -> None:
    error = teragpt(*arguments, code=2)
    assert error.startswith(f"error: {sentence}")
    assert error.count("\n") == 1


def test_a_spec_that_says_one_thing_twice_is_refused(teragpt: Teragpt, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"size": "tiny", "train": {"steps": 1, "steps": 2}}', "utf-8")
    error = teragpt("run", "--config", str(tmp_path / "spec.json"), code=2)
    assert "is no readable JSON (it says 'steps' more than once)" in error


def test_a_spec_that_is_no_object_is_refused(teragpt: Teragpt, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("[]", "utf-8")
    assert "holds a list; allowed: an object" in teragpt("run", "--config", str(tmp_path / "spec.json"), code=2)


@pytest.mark.parametrize("command", ["show", "logs", "cancel", "suspend", "save", "resume", "retry", "sample"])
def test_an_unknown_run_is_exit_code_4(teragpt: Teragpt, command: str) -> None:
    error = teragpt(command, "no-such-run", code=4)
    assert error == "error: no run has the id or the name 'no-such-run'; try: teragpt runs\n"


def test_sizes_are_listed(teragpt: Teragpt) -> None:
    assert len(json.loads(teragpt("sizes", "--json"))) == len(teragpt("sizes").splitlines()) - 1


def test_a_plan_says_what_a_size_takes(teragpt: Teragpt) -> None:
    arguments = ["plan", "124m", "--processes", "2", "--set", "seed=1", "--set", "num_tokens=50304"]
    assert (
        dict(line.split("  ", 1) for line in teragpt(*arguments).splitlines())["optimizer"].strip().startswith("muon,")
    )
    arguments += ["--set", "optimizer=adamw"]
    plan = json.loads(teragpt(*arguments, "--json"))
    printed = teragpt(*arguments)
    rows = dict(line.split("  ", 1) for line in printed.splitlines())
    parameters = plan["resolved"]["parameters"]
    assert rows["parameters"].strip() == f"{parameters:,} with a vocabulary of 50,304"
    assert rows["state"].strip().startswith(f"{output.size(16 * parameters / 2)} on the fullest rank: parameters ")
    assert rows["optimizer"].strip().startswith("adamw, learning rate ")
    assert rows["layout"].strip().startswith("1 node of 2 ranks: ")
    assert "learning_rate" not in printed
    assert "learning_rate" in teragpt(*arguments, "--all")
    assert (
        "no: /size: got '175b', which needs"
        in dict(line.split("  ", 1) for line in teragpt("plan", "175b").splitlines())["fits"]
    )


def test_setting_names_may_be_written_with_dashes() -> None:
    assert pairs("--set", ["eval-every=3", "data=a=b"]) == [("eval_every", "3"), ("data", "a=b")]
    assert pairs("--label", ["my-team=lm"]) == [("my-team", "lm")]


def test_folders_are_named_as_seen_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place("data/mine") == str(tmp_path / "data/mine")
    assert place("s3://bucket/mine") == "s3://bucket/mine"
    assert place(None) is None


def test_a_mixture_becomes_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    web = {"uri": str(tmp_path / "web"), "weight": 0.7}
    assert reads("web:0.7,s3://b/code:.3:2") == {"sources": [web, {"uri": "s3://b/code", "weight": 0.3, "epochs": 2}]}
    assert reads("web") == {"uri": web["uri"]}
    assert reads(None) == {}
