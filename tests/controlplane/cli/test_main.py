from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from controlplane.cli import main

HEAVY = ("torch", "transformers", "numpy", "httpx", "fastapi", "sqlalchemy", "pydantic", "rich")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in (
        "up",
        "run",
        "runs",
        "show",
        "pods",
        "logs",
        "cancel",
        "suspend",
        "save",
        "resume",
        "retry",
        "sample",
        "export",
        "prepare",
        "plan",
    ):
        assert f"\n  {command} " in printed


def test_help_imports_nothing_heavy() -> None:
    script = f"""
import sys
from controlplane.cli import main
main(["--help"])
print("loaded:", [name for name in {HEAVY} if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert printed.endswith("loaded: []\n")


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "Commands:" in captured.out + captured.err


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{version('teragpt')}\n"


def test_an_unknown_command_is_bad_input_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rusn"]) == 2
    assert capsys.readouterr().err.startswith("error: no such command 'rusn'; did you mean 'run', 'runs'? try: teragpt")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--nod", "1"], "--nod: there is no such option; did you mean --nodes? try: teragpt run --help"),
        (["runs", "--qqq"], "--qqq: there is no such option"),
        (["runs", "--limit", "0"], "--limit: got '0'; allowed: greater than or equal to 1; try: teragpt runs --help"),
        (["runs", "--limit", "x"], "--limit: got 'x'; allowed: a valid integer; try: teragpt runs --help"),
        (["sample", "x", "--top-p", "2"], "--top-p: got '2'; allowed: less than or equal to 1; try: teragpt sample"),
        (["show"], "RUN: got nothing; allowed: a run's id or name; try: teragpt show --help"),
        (["context", "add", "lab"], "--url: got nothing; allowed: its address; try: teragpt context add --help"),
        (["run", "--name"], "--name: got nothing; allowed: a value; try: teragpt run --help"),
        (["run", "--preview=3"], "--preview: got a value; allowed: none; try: teragpt run --help"),
        (["runs", "more"], "got unexpected extra argument(s) (more); allowed: teragpt runs [OPTIONS]; try: teragpt"),
        (["prepare", "text", "--out", "x"], "--tokenizer: got nothing; allowed: a hub's name, a folder or a tokenizer"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_that_names_it(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {sentence}")
    assert printed.err.count("\n") == 1


def test_every_command_helps_under_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "prepare", "sample", "plan"):
        assert main([command, "--help"]) == 0
        assert capsys.readouterr().out.strip().startswith(f"Usage: teragpt {command} ")


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "controlplane.cli", "--version"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == f"{version('teragpt')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered_for_every_shell(shell: str) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "controlplane.cli", "--show-completion", shell],
        check=True,
        capture_output=True,
        text=True,
        env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "PATH": "/usr/bin:/bin"},
    )
    assert "teragpt" in completed.stdout
