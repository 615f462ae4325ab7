from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before its first kernel inductor builds and loads a program for each instruction set that the CPU says it has, and
# starts workers that import torch: 25 s of CPU time in each process, for the few kernels that tests compile.
os.environ |= {"TORCHINDUCTOR_VEC_ISA_OK": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


@pytest.fixture(autouse=True)
def _leave_nothing_running() -> Iterator[None]:
    from tests.teragpt import ranks

    yield
    ranks.clean_up()


@pytest.fixture(autouse=True, scope="session")
def _leave_no_parent_of_forks() -> Iterator[None]:
    from tests.teragpt import forks

    yield
    forks.close()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small models are fastest on one thread, and tests run beside each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compiler() -> str:
    """The machine's C++ compiler, which torch's inductor needs; those few tests say so where there is none."""
    found = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if not found:
        pytest.skip("no C++ compiler on this machine: torch's inductor cannot run")
    return found


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small model after four steps on two ranks; copy it before you change it."""
    from tests.teragpt import ranks

    out = tmp_path_factory.mktemp("trained") / "run"
    code, output = ranks.train({"out": out, "steps": 4, "checkpoint_every": 2}, 2)
    assert code == 0, output
    return out


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """The variables that lead to an S3 server with the bucket `stores.BUCKET`."""
    from tests.teragpt import stores

    with stores.s3() as environ:
        yield environ
