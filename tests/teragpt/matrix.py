"""Every cell of the matrix beside one rank: each mesh, whatever is computed again, compiled, tied or packed.

`make parity` prints the largest difference of each cell. fp64: of loss and every gradient at steps 1 and 5, within
1e-10. fp32: losses within 1e-5, gradients within 1e-4. bf16: the loss of 20 steps within 2e-3; gradients are shown.

`make parity CELLS="TP 2, eager"` takes only cells whose names have all of the words.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from teragpt.config import FIELDS
from tests.teragpt import ranks
from tests.teragpt.parity import Cell, compute, difference

MESHES: dict[str, tuple[int, dict[str, int]]] = {
    "FSDP 2": (2, {}),
    "HSDP 2 x 2": (4, {"dp_replicate": 2}),
    "TP 2": (2, {"tp": 2}),
    "FSDP 2 x TP 2": (4, {"tp": 2}),
    "CP 2": (2, {"cp": 2}),
    "FSDP 2 x CP 2": (4, {"cp": 2}),
    "PP 2": (2, {"pp": 2}),
    "PP 2 x FSDP 2": (4, {"pp": 2}),
    "PP 2 x TP 2": (4, {"pp": 2, "tp": 2}),
}
ALL_DIMENSIONS = "PP 2 x CP 2 x TP 2"  # and FSDP, which shards over cp; 8 ranks, so that there is one a backend
BACKENDS = {"eager": "", "inductor": "inductor"}
LIMITS = {"fp64": (1e-10, 1e-10), "fp32": (1e-5, 1e-4), "bf16": (2e-3, float("inf"))}  # of losses, of gradients


def settings(precision: str) -> Iterator[dict[str, Any]]:
    """What differs between the cells of one mesh and backend."""
    axes: dict[str, Sequence[Any]] = {
        "recompute": ("none", "selective", "full"),
        "tied": (True, False),
        "packing": ("plain", "documents"),
    }
    if precision != "fp64":
        axes = {"recompute": ("none", "full")}
    there = {name: values for name, values in axes.items() if name in FIELDS}
    for chosen in itertools.product(*there.values()):
        yield {
            **dict(zip(there, chosen, strict=True)),
            "depth": 4,
            "precision": precision,
            "steps": 20 if precision == "bf16" else 5,
        }


def cells() -> Iterator[tuple[str, Cell]]:
    """Every cell, under its row's name."""
    for (mesh, (count, sizes)), (backend, used), precision in itertools.product(
        MESHES.items(), BACKENDS.items(), LIMITS
    ):
        for chosen in settings(precision):
            told = [
                f"{key} {str(value).lower()}"
                for key, value in chosen.items()
                if key not in {"depth", "precision", "steps"}
            ]
            yield ", ".join([mesh, precision, backend, *told]), Cell(count, sizes, chosen, used)

    for backend, used in BACKENDS.items():
        chosen = {"recompute": "selective", "tied": False, "packing": "documents", "depth": 4, "precision": "fp64"}
        told = ["recompute selective", "tied false", "packing documents"]
        yield ", ".join([ALL_DIMENSIONS, "fp64", backend, *told]), Cell(8, {"pp": 2, "cp": 2, "tp": 2}, chosen, used)


def main(words: Sequence[str]) -> int:
    """Print the table, a mesh and backend at a time; 1 where a cell is beyond its limit."""
    asked = {word.strip() for word in " ".join(words).split(",")} - {""}
    wanted = [(name, cell) for name, cell in cells() if asked <= set(name.split(", "))]
    beyond = 0
    print(f"{'cell':72} {'loss':>9} {'gradients':>9}")
    for _, group in itertools.groupby(wanted, key=lambda one: (one[1].mesh, one[1].ranks, one[1].backend)):
        some = list(group)
        with tempfile.TemporaryDirectory() as folder:
            found = compute([one for _, cell in some for one in (cell, cell.model)], Path(folder))
        for name, cell in some:
            pair = found[cell.model.name], found[cell.name]
            loss, all_of_it = difference(*pair, " loss"), difference(*pair)
            limit, limit_of_all = LIMITS[str(cell.settings["precision"])]
            good = loss <= limit and all_of_it <= limit_of_all
            beyond += not good
            print(f"{name:72} {loss:9.1e} {all_of_it:9.1e}{'' if good else '  beyond its limit'}", flush=True)
    ranks.clean_up()
    print(f"{len(wanted) - beyond} of {len(wanted)} cells within their limits")
    return int(beyond > 0 or not wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
