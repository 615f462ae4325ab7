"""kubectl on a cluster: the test cluster's own, or the one that KUBECONFIG names."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.cluster.layout import BIN, KUBECONFIG, Failed


def kubectl(
    *arguments: str, timeout_s: float = 60, stdin: str | None = None, kubeconfig: Path = KUBECONFIG
) -> subprocess.CompletedProcess[str]:
    """As the kubeconfig's user; the exit code is the caller's to judge."""
    command = [str(BIN / "kubectl"), f"--kubeconfig={kubeconfig}", f"--request-timeout={timeout_s:.0f}s", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def must(*arguments: str, timeout_s: float = 60, stdin: str | None = None, kubeconfig: Path = KUBECONFIG) -> str:
    """What it prints. Raises Failed with what it says when it fails."""
    done = kubectl(*arguments, timeout_s=timeout_s, stdin=stdin, kubeconfig=kubeconfig)
    if done.returncode:
        raise Failed(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def read(*arguments: str, kubeconfig: Path = KUBECONFIG) -> Any:
    """The object or list that `kubectl get ARGUMENTS` finds."""
    return json.loads(must("get", *arguments, "--output=json", kubeconfig=kubeconfig))
