"""The hash-locked requirements that images are built from: every distribution, at its version in constraints.txt.

`python -m tools.lock` writes them; it asks the package index for hashes, whose name stands in no lock. `stale` needs no
index: it follows the installed distributions' own metadata.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.blocks import ROOT

FOLDER = Path("deploy/locks")
PYTHON = "3.11"  # the oldest that is supported, and Debian 12's
LOCKS = {  # a file's name: the extras that it locks; without any, what builds a wheel
    "controlplane": ("serve", "otel", "postgres"),
    "build": (),
}
HEAD = "# Written by `python -m tools.lock`, which reads pyproject.toml and constraints.txt.\n"


def write(name: str, root: Path = ROOT) -> None:
    """Write one lock. Raises CalledProcessError where the index has not what is asked for."""
    options = ["--constraint", "constraints.txt", "--generate-hashes", "--universal", "--python-version", PYTHON]
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "-", *options, "--no-header", "--no-annotate"]
    asked = "\n".join(wanted(name, root))
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True, input=asked)
    (root / FOLDER / f"{name}.txt").write_text(HEAD + done.stdout, "utf-8")


def wanted(name: str, root: Path = ROOT) -> list[str]:
    """What pyproject.toml asks for, to be locked."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    asked = [each for extra in LOCKS[name] for each in extras[extra]] or project["build-system"]["requires"]
    return [str(each) for each in asked]


def locked(name: str, root: Path = ROOT) -> dict[str, str]:
    """The version of each distribution in a lock that Linux installs."""
    lines = (root / FOLDER / f"{name}.txt").read_text("utf-8").splitlines()
    found = (re.fullmatch(r"([\w.-]+)==(\S+)( ; (.*))? \\", line) for line in lines)
    return {match[1]: match[2] for match in found if match and "win32" not in (match[4] or "")}


def stale(name: str, root: Path = ROOT) -> list[str]:
    """What a lock lacks, has at another version than constraints.txt, or has without need."""
    pins = dict(line.split("==") for line in (root / "constraints.txt").read_text("utf-8").split())
    have, need = locked(name, root), closure(wanted(name, root))
    return sorted(
        [f"{each} is not locked" for each in need - have.keys()]
        + [f"{each} is locked without need" for each in have.keys() - need]
        + [f"{each} is locked at {have[each]}, not {pins.get(each)}" for each in have if have[each] != pins.get(each)]
    )


def closure(asked: list[str]) -> set[str]:
    """Every distribution that requirements need here, by the metadata of what is installed."""
    found: set[str] = set()
    ahead = [(Requirement(text), "") for text in asked]
    while ahead:
        needed, extra = ahead.pop()
        if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(needed.name)
        extras = {f"{name}[{each}]": each for each in ("", *sorted(needed.extras))}
        for key in extras.keys() - found:
            found.add(key)
            ahead += [(Requirement(text), extras[key]) for text in requires(name) or []]
    return {key.partition("[")[0] for key in found}


if __name__ == "__main__":
    for lock in LOCKS:
        write(lock)
