"""What every test relies on: signals as a terminal gives them, long files first, coverage where it is worth its time.

Tracing makes Python 3.11 take half as long again. What coverage reports is a floor, and a test that is not traced can
only raise what all tests execute: those whose lines others execute too are marked `unmeasured`.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator

import pytest
from coverage import Coverage
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

LONGEST = (
    "controlplane/cli/test_demo.py",
    "tools/test_readme.py",
    "teragpt/test_parity.py",
    "teragpt/test_train.py",
    "controlplane/test_chaos.py",
    "teragpt/test_layout.py",
    "teragpt/test_chaos.py",
    "controlplane/reconcile/test_crashes.py",
    "controlplane/test_server.py",
    "teragpt/test_pipeline.py",
    "teragpt/test_fp8.py",
    "teragpt/test_kernels.py",
    "controlplane/test_replicas.py",
    "controlplane/reconcile/test_transitions.py",
    "teragpt/test_launch.py",
    "teragpt/test_watch.py",
    "teragpt/test_data.py",
    "teragpt/test_corpus.py",
    "helm/test_chart.py",
    "teragpt/test_killed.py",
    "teragpt/test_moves.py",
    "teragpt/test_muon.py",
)
TOGETHER = "tests/controlplane/cli/"  # one control plane and one trained run for all of them

MEASURE = "COVERAGE_PROCESS_CONFIG"  # what makes processes measure themselves that a measured one starts
COVERAGE, CONFIG = Coverage.current(), os.environ.get(MEASURE, "")
GARBAGE = 20_000  # objects more than before, instead of 700, that are looked through
OTHERS = "tests/deploy", "tests/helm", "tests/tools"  # of other things than the two packages

settings.register_profile("no clock", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("no clock")

# A test run started in the background inherits ignored signals, and so would every process that it starts.
for _signal, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, _handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays, and is not looked through for garbage; nor are tests as often as Python would."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(GARBAGE)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((place for place, file in enumerate(LONGEST) if str(item.path).endswith(file)), len(LONGEST))

    items.sort(key=place)  # stable: the order within a file stays


class Files(LoadFileScheduling):  # type: ignore[misc]
    """A worker takes a file, or the files that share what is dear to make."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return TOGETHER if file.startswith(TOGETHER) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Files | None:
    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    if COVERAGE and measured(item) != (Coverage.current() is COVERAGE):
        trace(COVERAGE, wanted=measured(item))


def trace(coverage: Coverage, *, wanted: bool) -> None:
    """From now on this process and what it starts are traced, or neither."""
    if not wanted:
        coverage.stop()
        os.environ.pop(MEASURE)
        return
    patches = coverage.get_option("run:patch")
    coverage.set_option("run:patch", [])  # every start adds them anew, and a fork would start as often
    coverage.start()
    coverage.set_option("run:patch", patches)
    os.environ[MEASURE] = CONFIG


def measured(item: pytest.Item) -> bool:
    """Whether lines count that a test executes.

    What rests on the store executes the same ones on both databases, and a property's examples those of plain tests.
    """
    folder = item.path.parent.relative_to(item.config.rootpath).as_posix()
    callspec, function = getattr(item, "callspec", None), getattr(item, "obj", None)
    on_postgres = callspec and callspec.params.get("store") == "postgres" and folder != "tests/controlplane/store"
    drawn = getattr(function, "is_hypothesis_test", False)
    return not (on_postgres or drawn or folder.startswith(OTHERS) or item.get_closest_marker("unmeasured"))
