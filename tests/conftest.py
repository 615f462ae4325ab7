"""What every test relies on: signals as a terminal gives them, and long files first, so that workers end together."""

from __future__ import annotations

import signal

import pytest

LONGEST = (
    "teragpt/test_parity.py",
    "teragpt/test_pipeline.py",
    "teragpt/test_train.py",
    "tools/test_readme.py",
    "teragpt/test_moves.py",
    "teragpt/test_fp8.py",
    "teragpt/test_muon.py",
    "teragpt/test_launch.py",
    "teragpt/test_layout.py",
    "controlplane/cli/test_demo.py",
    "controlplane/test_server.py",
    "controlplane/test_replicas.py",
    "teragpt/test_checkpoint.py",
    "tools/test_wheel.py",
    "tools/test_lines.py",
)

# A test run started in the background inherits ignored signals, and so would every process that it starts.
for _signal, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, _handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((place for place, file in enumerate(LONGEST) if str(item.path).endswith(file)), len(LONGEST))

    items.sort(key=place)  # stable: the order within a file stays
