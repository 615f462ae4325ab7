"""Builds Helm 3 and Helm 4 from their Go modules, at the versions of go.mod, once: `python -m tests.helm.binary`.

They lie in the cache as `helm` and `helm4`, beside the test cluster's programs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent / "go"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teragpt-cluster"
PROGRAMS = {"helm": ("helm.sh/helm/v3", ("pkg/lint/rules", "pkg/chartutil")), "helm4": ("helm.sh/helm/v4", ())}


def build() -> None:
    """Build what is missing, or was built of other versions. Raises CalledProcessError, and OSError without Go."""
    wanted = sha256((FOLDER / "go.mod").read_bytes()).hexdigest()
    (CACHE / "bin").mkdir(parents=True, exist_ok=True)
    for name, (module, told) in PROGRAMS.items():
        target, stamp = CACHE / "bin" / name, CACHE / f"{name}.built"
        if not (target.exists() and stamp.exists() and stamp.read_text("ascii") == wanted):
            print(f"building {name}", flush=True)
            draft = target.with_name(f".{name}.{os.getpid()}")
            command = [
                "go",
                "build",
                "-trimpath",
                "-ldflags",
                flags(module, told),
                "-o",
                str(draft),
                f"{module}/cmd/helm",
            ]
            subprocess.run(command, cwd=FOLDER, check=True)
            draft.replace(target)
            stamp.write_text(wanted, "ascii")


def flags(module: str, told: tuple[str, ...]) -> str:
    """Versions as Helm's own Makefile bakes them in: without them Helm 3 takes a cluster to be v1.20."""
    minor = version("k8s.io/client-go").split(".")[1]
    facts = {f"{module}/internal/version.version": version(module)}
    for package in told:
        facts |= {f"{module}/{package}.k8sVersionMajor": "1", f"{module}/{package}.k8sVersionMinor": minor}
    return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in facts.items())])


def version(module: str) -> str:
    """The version of a module that go.mod asks for."""
    listed = subprocess.run(["go", "list", "-m", "-json", module], cwd=FOLDER, check=True, capture_output=True)
    return str(json.loads(listed.stdout)["Version"])


if __name__ == "__main__":
    try:
        build()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"helm could not be built: {error}")
