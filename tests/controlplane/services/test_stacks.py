"""Stacks that ranks printed into their pods' logs."""

from __future__ import annotations

import subprocess
import sys

from controlplane.services.stacks import dumps

RANK = """
import faulthandler, signal, sys, threading
def waits_for_a_peer(): threading.Event().wait(60)
threading.Thread(target=waits_for_a_peer, daemon=True).start()
faulthandler.register(signal.SIGUSR2, file=2)
def all_reduce(): signal.raise_signal(signal.SIGUSR2)
print("step 1/9  loss 5.1", file=sys.stderr)
all_reduce()
print("step 2/9  loss 5.0", file=sys.stderr)
"""


def test_what_faulthandler_prints_is_told_from_all_else_rank_by_rank() -> None:
    said = subprocess.run([sys.executable, "-c", RANK], capture_output=True, text=True, check=True).stderr.splitlines()
    log = [line for pair in zip(said, (f"[rank 3] {line}" for line in said), strict=True) for line in pair]
    found = dumps(["stopping", *log, "stopped"])
    assert set(found) == {0, 3}
    assert found[0] == found[3]
    assert "in waits_for_a_peer\n" in found[0]
    assert "in all_reduce\n" in found[0]
    assert "Current thread 0x" in found[0]
    assert "step" not in found[0]
    assert dumps(["step 1/9", '  File "x.py", line 1 in f']) == {}
