from __future__ import annotations

from pathlib import Path

import pytest

from tools import lock
from tools.blocks import ROOT

SIZE = 200_000


@pytest.mark.parametrize("name", lock.LOCKS)
def test_lock_holds_what_is_needed_at_the_pinned_versions(name: str) -> None:
    assert not lock.stale(name), "python -m tools.lock"


@pytest.mark.parametrize("name", lock.LOCKS)
def test_lock_has_hashes_and_names_no_index(name: str) -> None:
    text = (ROOT / lock.FOLDER / f"{name}.txt").read_text("utf-8")
    assert text.count("--hash=sha256:") > len(lock.locked(name))
    assert "://" not in text
    assert len(text) < SIZE


def test_what_a_lock_lacks_or_has_too_much_or_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / lock.FOLDER).mkdir(parents=True)
    for file in ("pyproject.toml", "constraints.txt"):
        (tmp_path / file).write_text((ROOT / file).read_text("utf-8"), "utf-8")
    good = (ROOT / lock.FOLDER / "build.txt").read_text("utf-8")
    lines = [line for line in good.splitlines() if not line.startswith("pluggy==")]
    broken = "\n".join([*lines, "six==1.0 \\"]).replace("hatchling==", "hatchling==0.")
    (tmp_path / lock.FOLDER / "build.txt").write_text(broken, "utf-8")
    said = lock.stale("build", tmp_path)
    assert "pluggy is not locked" in said
    assert "six is locked without need" in said
    assert any(each.startswith("hatchling is locked at 0.") for each in said)
