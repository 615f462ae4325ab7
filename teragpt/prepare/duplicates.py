"""Which documents of many parts are dropped: all but the first of equal ones, and those like an earlier one.

Why: a worker sees one block, so what repeats is found afterwards, over the keys of all. Memory holds the keys of some
millions of documents at a time, whatever their number. It must not know what keys are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from teragpt.prepare.documents import Recipe
from teragpt.prepare.minhash import bands_for
from teragpt.prepare.parts import Part
from teragpt.prepare.report import Tell, untold

KEPT, EXACT, NEAR = 0, 1, 2
KEYS_AT_ONCE = 1 << 23  # documents; some 40 bytes each while they are sorted
Codes = npt.NDArray[np.uint8]


def find_duplicates(parts: Sequence[Part], recipe: Recipe, codes: Codes, tell: Tell = untold) -> None:
    """Write EXACT and NEAR to the `codes` of all documents, which are KEPT, in the parts' order. Raises OSError."""
    if recipe.exact_duplicates == "drop":
        for repeated in repetitions(parts, "digests", len(codes), tell):
            codes[repeated] = EXACT
    for band in range(bands_for(recipe.near_duplicates)[0] if recipe.near_duplicates else 0):
        for repeated in repetitions(parts, f"band{band}", len(codes), tell):
            codes[repeated] = np.where(codes[repeated] == KEPT, NEAR, codes[repeated])


def repetitions(
    parts: Sequence[Part], name: str, documents: int, tell: Tell = untold
) -> Iterator[npt.NDArray[np.int64]]:
    """The places of documents whose key, the array of that name, an earlier one has too.

    Keys go by their value into as many groups as memory asks for, each read and sorted alone.
    """
    groups = documents // KEYS_AT_ONCE + 1
    for group in range(groups):
        found, places, start = [], [], 0
        for part in tell(parts, f"duplicates looked for by {name}"):
            keys = part.read(name)
            keys = keys.reshape(len(keys), -1)
            mine = np.flatnonzero(keys[:, -1] % np.uint64(groups) == group)
            found.append(keys[mine])
            places.append(mine + start)
            start += len(keys)
        if places:
            yield later(np.concatenate(found), np.concatenate(places))


def later(keys: npt.NDArray[np.uint64], places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The places, in rising order, whose key (n, words) stands at an earlier one too."""
    order = np.lexsort((places, *keys.T))
    ordered = keys[order]
    again = (ordered[1:] == ordered[:-1]).all(axis=1)
    return np.sort(places[order[1:][again]])
