"""Before the first step: do all ranks run the same code, on the same data, with the same settings?

Ranks that differ would train on and save nonsense, or hang. Every node has an image, a cache and an environment of its
own, so this is asked each time.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from teragpt.config import Config, ConfigError, Problem
from teragpt.launcher.signals import LEAVE_S

BAD_CONFIG = 2  # the trainer's exit code
SHOWN = 8  # ranks that an error names
OURS = __name__.partition(".")[0]
INSTALLED = "site-packages", "dist-packages"  # folders of modules that have nothing to do with each other


def agree(config: Config, data: str) -> None:
    """Compare torch, this package, a user's own modules, the dataset's fingerprint and every setting over all ranks.

    Where a node keeps the dataset, the setting `data`, is its own affair: the fingerprint says whether it is the same.

    Raises ConfigError on rank 0, naming what differs, on which ranks, and what rank 0 has; SystemExit on the others,
    which have nothing to add.
    """
    mine = {"torch": str(torch.__version__), OURS: code(), **asdict(config), "data": data}
    mine |= own_code(config.model) | own_code(config.loader)
    leads = dist.get_rank() == 0
    theirs: list[Any] | None = [None] * dist.get_world_size() if leads else None
    dist.gather_object(mine, theirs)
    found = [list(differences(theirs)) if theirs else []]
    dist.broadcast_object_list(found)
    if found[0]:
        if leads:
            raise ConfigError(found[0])
        time.sleep(LEAVE_S)  # so that rank 0 ends first, which says why
        raise SystemExit(BAD_CONFIG)


@cache
def code() -> str:
    """A fingerprint of this package's source, its subpackages and the data files that they read."""
    package = Path(__file__).parents[1]
    sources = (path for pattern in ("*.py", "*.json") for path in package.rglob(pattern))
    return fingerprint({path.relative_to(package).as_posix(): path for path in sources})


def own_code(name: str) -> dict[str, str]:
    """Fingerprints of the loaded modules that lie beside `module:attribute` and are not this package's.

    Modules are told apart so that one which only some ranks have loaded is not a difference.
    """
    own = name.partition(":")[0].partition(".")[0]
    root = None if own == OURS else home(sys.modules[own])
    if root is None:
        return {}
    loaded = list(sys.modules.items())
    beside = {top for top, module in loaded if "." not in top and top != OURS and home(module) == root}
    tops = {own} if root.name in INSTALLED else {own} | beside
    files = {name: file_of(module) for name, module in loaded if name.partition(".")[0] in tops}
    return {f"code of {name}": fingerprint({"": file}) for name, file in files.items() if file and file.is_file()}


def home(module: ModuleType) -> Path | None:
    """The folder that a top-level module or package lies in."""
    file, folders = file_of(module), getattr(module, "__path__", None)  # a namespace package has no file
    place = Path(next(iter(folders))) if folders else file
    return place and place.absolute().parent


def file_of(module: ModuleType) -> Path | None:
    """The file that a module was loaded from."""
    file = getattr(module, "__file__", None)
    return Path(file).absolute() if isinstance(file, str) else None


def fingerprint(files: Mapping[str, Path]) -> str:
    """A short digest of files and their names."""
    digest = hashlib.blake2b(digest_size=6)
    for name, path in sorted(files.items()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def differences(facts: Sequence[Mapping[str, object]]) -> Iterator[Problem]:
    """What ranks have otherwise than rank 0, from the facts of all ranks in order; what a rank does not tell agrees."""
    for name, ours in facts[0].items():
        others = {rank: fact[name] for rank, fact in enumerate(facts) if fact.get(name, ours) != ours}
        if others:
            first = next(iter(others.values()))
            ranks = ", ".join(map(str, list(others)[:SHOWN])) + (", …" if len(others) > SHOWN else "")
            yield Problem(name, first, f"{ours!r}, as on rank 0; it differs on rank {ranks}")
