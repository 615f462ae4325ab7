from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import ranks`


@pytest.fixture(autouse=True)
def _leave_nothing_running() -> Iterator[None]:
    import ranks

    yield
    ranks.clean_up()


@pytest.fixture(scope="session")
def compiler() -> str:
    """The machine's C++ compiler, which torch's inductor needs; those few tests say so where there is none."""
    found = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if not found:
        pytest.skip("no C++ compiler on this machine: torch's inductor cannot run")
    return found
