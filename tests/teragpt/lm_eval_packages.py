"""Installs lm-evaluation-harness once, outside the checkout, beside what is installed for development.

As a development dependency it would bring a third of a gigabyte to everybody, for one test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

LISTED = Path(__file__).with_name("lm-eval.txt")
CACHE = Path(os.environ.get("CACHE_HOME") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teragpt-ci"


def packages() -> Path:
    """The folder of its packages, for PYTHONPATH. Raises CalledProcessError where they cannot be installed."""
    what = f"{sys.version} {LISTED.read_text('utf-8')}"
    folder = CACHE / f"lm-eval-{sha256(what.encode()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "lm-eval.lock"):
        if not folder.exists():
            draft = folder.with_suffix(".part")
            shutil.rmtree(draft, ignore_errors=True)
            uv = ["uv", "pip", "install", "--python", sys.executable, "--quiet", "--no-deps"]
            subprocess.run(
                [sys.executable, "-m", *uv, "--target", str(draft), "--requirement", str(LISTED)], check=True
            )
            draft.replace(folder)
    return folder
