"""What the chart renders, kept to be compared with: `python -m tests.helm.renders` writes it anew, after a change.

`deploy/manifests` holds whole renders, for those who install with kubectl alone. `tests/helm/golden` holds, for each of
the cases, what its values change in the default render, as a reviewer of the chart wants to see it.
"""

from __future__ import annotations

import difflib
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.helm.rendered import CASES, text
from tools.blocks import ROOT

GOLDEN = Path("tests/helm/golden")
MANIFESTS = Path("deploy/manifests")
NOTE = "# Rendered from helm/teragpt by `python -m tests.helm.renders`: change that. To apply it: docs/install.md\n"
RELEASES: dict[str, dict[str, Any]] = {
    "teragpt.yaml": {"test": {"enabled": False}},
    "postgres/teragpt.yaml": {  # in a folder: `kubectl apply -f deploy/manifests` takes the other alone
        "replicas": 2,
        "database": {"existingSecret": "teragpt-database"},
        "auth": {"existingSecret": "teragpt-access"},
        "podDisruptionBudget": {"enabled": True},
        "test": {"enabled": False},
    },
}


def texts() -> dict[Path, str]:
    """Every file, with what it should hold."""
    whole = {MANIFESTS / name: NOTE + rendered(values) for name, values in RELEASES.items()}
    default = text()
    changes = {case.stem: changed(default, text(yaml.safe_load(case.read_text("utf-8")))) for case in CASES}
    assert not changes.pop("default")
    return (
        whole | {GOLDEN / "default.yaml": default} | {GOLDEN / f"{name}.diff": told for name, told in changes.items()}
    )


def rendered(values: dict[str, Any]) -> str:
    """A release without its test, in the namespace teragpt."""
    return text(values, "--skip-tests", namespace="teragpt")


def changed(before: str, after: str) -> str:
    """The lines that differ, between those where they stand; without numbers of lines, which move too easily."""
    _, _, *lines = [*difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2)] or ["", ""]
    return "".join(f"{'@@' if line.startswith('@@') else line}\n" for line in lines)


def main() -> int:
    """Write every file; remove what no case has any more."""
    made = texts()
    for folder in (GOLDEN, MANIFESTS):
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    for path, content in made.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(content, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
