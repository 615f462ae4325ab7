"""The Dockerfile, as far as it is read and not built: tests/cluster/test_controlplane_image.py builds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.blocks import ROOT

HADOLINT = Path(sys.executable).with_name("hadolint")


def found(text: str) -> str:
    """What hadolint has to say of a Dockerfile."""
    command = [str(HADOLINT), f"--config={ROOT / '.hadolint.yaml'}", "--no-color", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert not done.stderr
    assert bool(done.stdout) == bool(done.returncode)
    return done.stdout


def test_hadolint_finds_nothing() -> None:
    assert not found((ROOT / "Dockerfile").read_text("utf-8"))


def test_hadolint_would_say_what_is_wrong() -> None:
    assert "DL3002" in found("FROM debian:12-slim\nUSER root\n")
    assert "DL4006" in found("FROM debian:12-slim\nRUN true | cat\n")
