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
    for command in ("up", "run", "runs", "show", "logs", "cancel", "retry", "sample", "export", "prepare", "plan"):
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
    assert "Did you mean" in capsys.readouterr().err


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
