"""`--json`: what a program reads stands on stdout, and nothing else does."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from controlplane.cli.app import app

from .conftest import DEADLINE_S, Plane, Teragpt
from .test_models import TEMPLATE
from .test_trainer import folder_of

WITHOUT = {
    "up": "its options are settings, of which --json is one",
    "demo": "a show for people; a program has `up` and `run --follow`",
}


def commands(group: Any, before: str = "") -> Iterator[tuple[str, bool]]:
    """The command lines of a group, and whether each takes --json."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, any("--json" in parameter.opts for parameter in command.params)


def test_every_command_takes_json_or_is_named_here_with_the_reason() -> None:
    lacking = {name for name, taken in commands(typer.main.get_command(app)) if not taken}
    assert lacking == WITHOUT.keys()


def lines_of(written: str) -> list[Any]:
    return [json.loads(line) for line in written.splitlines()]


def test_lines_of_a_log_say_whose_they_are(teragpt: Teragpt, finished: str) -> None:
    whole = teragpt("logs", finished).split("\n")[:-1]
    for more in ([], ["--follow"]):
        found = lines_of(teragpt("logs", finished, "--json", *more))
        assert [one["text"] for one in found] == whole
        assert {(one["attempt"], one["rank"]) for one in found} == {(1, 0)}
    (last,) = lines_of(teragpt("logs", finished, "--json", "--tail", "1"))
    assert last["text"] == whole[-1]
    first = lines_of(teragpt("logs", finished, "--json", "--search", "step"))[0]
    assert first.keys() == {"attempt", "rank", "line", "offset", "text"}


def test_what_is_deleted_and_comes_back_is_a_line_each(teragpt: Teragpt) -> None:
    made = [json.loads(teragpt("run", "tiny", "--processes", "1", "--json"))["id"] for _ in range(2)]
    teragpt("cancel", *made, "--follow", "--json")
    assert lines_of(teragpt("delete", *made, "--json")) == [{"id": run, "deleted": True} for run in made]
    assert [run["id"] for run in lines_of(teragpt("undelete", *made, "--json"))] == made


def test_folders_that_are_made_of_a_run_are_named(teragpt: Teragpt, finished: str, tmp_path: Path) -> None:
    out, back, copy = (str(tmp_path / name) for name in ("exported", "imported", "copy"))
    assert json.loads(teragpt("export", finished, out, "--json")) == {"folder": out}
    assert json.loads(teragpt("import", out, back, "--json")) == {"folder": back, "config": f"{back}/model.json"}
    assert json.loads(teragpt("pull", finished, copy, "--json")) == {"folder": copy}
    assert Path(copy, "config.json").is_file()
    assert Path(back, "model.json").is_file()


def test_tokenizers_and_datasets_tell_what_they_hold(teragpt: Teragpt, plane: Plane, tmp_path: Path) -> None:
    text, out, data = (str(tmp_path / name) for name in ("text.txt", "tokenizer", "dataset"))
    Path(text).write_text("the cat sat on the mat\n" * 5000, "utf-8")
    made = json.loads(teragpt("tokenizer", "train", text, "-o", out, "--vocabulary", "264", "--json"))
    found = json.loads(teragpt("tokenizer", "inspect", out, text, "--json"))
    assert (made["folder"], made["entries"]) == (out, found["entries"])
    assert found["fingerprint"] == made["fingerprint"]
    assert found["kinds"][".txt"]["bytes"] == 23 * 5000
    assert found["unused"] > len(found["examples"]) > 0
    given = [text, "--tokenizer", out, "--json"]
    told = json.loads(teragpt("prepare", *given, "--out", data))
    assert (told["folder"], told["documents"], told["bytes"]) == (data, 1, 23 * 5000)
    run = json.loads(teragpt("prepare", *given, "--out", "jsoned", "--on-cluster", "--workers", "1"))
    assert (run["phase"], run["folder"]) == ("succeeded", str(plane.home / "datasets/jsoned"))


def test_a_store_is_copied_and_made_anew(teragpt: Teragpt, tmp_path: Path) -> None:
    file, home = tmp_path / "copy.db", tmp_path / "home"
    assert json.loads(teragpt("backup", str(file), "--json")) == {"file": str(file), "bytes": file.stat().st_size}
    told = json.loads(teragpt("restore", str(file), "--home", str(home), "--json"))
    assert told == {"home": str(home), "file": str(home / "state.db")}


def test_contexts_are_told_after_every_change(teragpt: Teragpt) -> None:
    where = ["--url", "http://127.0.0.1:9", "--token", "secret", "--json"]
    assert json.loads(teragpt("context", "add", "other", *where))["use"] == "other"
    assert json.loads(teragpt("context", "use", "--json"))["use"] is None
    assert "other" not in json.loads(teragpt("context", "remove", "other", "--json"))["contexts"]


def test_each_message_of_a_chat_is_answered_by_a_line(
    teragpt: Teragpt, finished: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE, "utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"hello\n{'too long ' * 2000}\nhello\n"))
    given = ["--chat-template", str(template), "--tokens", "4", "--seed", "1", "--json"]
    first, refused, last = lines_of(teragpt("chat", finished, *given))
    assert first["role"] == last["role"] == "assistant"
    assert first["content"]
    assert refused["error"].startswith("messages: got ")


def started(*arguments: str) -> dict[str, Any]:
    """What a command that goes on until it is told to stop says first; it says nothing else until its end."""
    command = [sys.executable, "-m", "controlplane.cli", *arguments, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        rest, told = process.communicate(timeout=DEADLINE_S)
    assert rest == "", told
    return dict(json.loads(first))


def test_what_goes_on_says_where_it_answers_once_it_does(teragpt: Teragpt, finished: str, tmp_path: Path) -> None:
    up = started("up", "--home", str(tmp_path))
    assert up["docs"] == f"{up['url']}/docs"
    assert up["home"] == str(tmp_path)
    served = started("serve", str(folder_of(teragpt, finished)), "--name", "small")
    assert served["model"] == "small"
    assert served["url"].endswith("/v1")


def test_what_a_machine_reaches_is_numbers() -> None:
    command = [sys.executable, "-m", "controlplane.cli", "bench", "tiny", "--steps", "1", "--json"]
    small = [word for one in ("depth=1", "dim=64", "heads=1", "context=64") for word in ("--set", one)]
    done = subprocess.run([*command, *small], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens_per_s"] > 0
    assert {"kind", "name", "ms", "calls"} == found["kernels"][0].keys()
