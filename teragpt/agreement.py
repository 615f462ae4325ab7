"""Before the first step: do all ranks run the same code, on the same data, with the same settings?

Ranks that differ would train on and save nonsense, or hang. Every node has an image, a cache and an environment of its
own, so this is asked each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from teragpt.config import Config, ConfigError, Problem

SHOWN = 8  # ranks that an error names


def agree(config: Config, data: str) -> None:
    """Compare torch, this package, the dataset's fingerprint and every setting over all ranks.

    Raises ConfigError on every rank, naming what differs, on which ranks, and what rank 0 has.
    """
    mine = {"torch": str(torch.__version__), "teragpt": code(), "data": data, **asdict(config)}
    leads = dist.get_rank() == 0
    theirs: list[Any] | None = [None] * dist.get_world_size() if leads else None
    dist.gather_object(mine, theirs)
    found = [list(differences(theirs)) if theirs else []]
    dist.broadcast_object_list(found)
    if found[0]:
        raise ConfigError(found[0])


@cache
def code() -> str:
    """A fingerprint of this package's source."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def differences(facts: Sequence[Mapping[str, object]]) -> Iterator[Problem]:
    """What ranks have that rank 0 has not, from the facts of all ranks in order."""
    for name, ours in facts[0].items():
        others = {rank: fact.get(name) for rank, fact in enumerate(facts) if fact.get(name) != ours}
        if others:
            first = next(iter(others.values()))
            ranks = ", ".join(map(str, list(others)[:SHOWN])) + (", …" if len(others) > SHOWN else "")
            yield Problem(name, first, f"{ours!r}, as on rank 0; it differs on rank {ranks}")
