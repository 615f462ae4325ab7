"""The examples of docs/client.md run as they stand there."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import pytest

from controlplane.client import Client
from tests.controlplane.plane import Plane, serving

PAGE = Path(__file__).parents[3] / "docs" / "client.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
SAID = ["succeeded None", "two", "invalid_request ['/size']"]


def train(plane: Plane, url: str, over: threading.Event) -> None:
    """Bring every run to its end."""
    with Client(url) as client:
        while not over.wait(0.01):
            for run in client.runs(phase=["queued", "pending"]):
                plane.write(plane.start(run["id"]), "one\ntwo\n")
                plane.succeed(run["id"])


def test_the_examples_run(
    tmp_path: Path, migrated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sync", "asynchronous"):
        monkeypatch.setattr(f"controlplane.client.{module}.LOOK_EVERY_S", 0.02)
    shutil.copytree(migrated, tmp_path / "home")
    plane, over = Plane(tmp_path / "home"), threading.Event()
    with serving(plane.app()) as url:
        trainer = threading.Thread(target=train, args=(plane, url, over))
        trainer.start()
        try:
            for example in EXAMPLES:
                exec(example.replace("http://127.0.0.1:8000", url), {"__name__": "example"})  # noqa: S102 - our own page
        finally:
            over.set()
            trainer.join()
    plane.store.close()
    said = capsys.readouterr().out.splitlines()
    assert len(EXAMPLES) == 3
    assert set(SAID) <= set(said)
    assert sum(line.endswith(" succeeded") for line in said) == 2
