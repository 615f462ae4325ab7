from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from .conftest import Teragpt

TEMPLATE = "{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}assistant:"


def test_an_evaluation_is_told_kept_and_compared(teragpt: Teragpt, finished: str) -> None:
    (line,) = teragpt("eval", finished, "--sequences", "2", "--json").splitlines()
    found = json.loads(line)
    assert found["sources"]["embedded"]["bits_per_byte"] > 0
    folder = Path(json.loads(teragpt("show", finished, "--json"))["folder"])
    assert len(list((folder / "evaluations").glob("*-2.json"))) == 1
    head, first, second = teragpt("eval", finished, str(folder), "--sequences", "2").splitlines()
    assert head.startswith("source")
    assert first.split()[-2:] == second.split()[-2:]


def test_a_chat_reads_lines_and_writes_replies(
    teragpt: Teragpt, finished: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "chat_template: got nothing" in teragpt("chat", finished, code=2)
    template = tmp_path / "template.jinja"
    assert "cannot be read" in teragpt("chat", finished, "--chat-template", str(template), code=2)
    template.write_text(TEMPLATE, "utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert teragpt("chat", finished, "--chat-template", str(template), "--tokens", "4", "--seed", "1").strip()


def test_nobody_else_is_served_without_a_key(teragpt: Teragpt, finished: str) -> None:
    error = teragpt("serve", finished, "--host", "0.0.0.0", code=2)
    assert error.startswith("error: --host 0.0.0.0 lets others in: set TERAGPT_SERVE_KEY")
