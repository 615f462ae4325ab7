"""Which documents are like an earlier one: MinHash signatures (Broder 1997), compared band by band.

Why: two documents of Jaccard similarity s share one of b bands of r values with probability 1 - (1 - s^r)^b, so equal
keys find near duplicates without comparing pairs (Leskovec et al. 2014, section 3.4). It must not know what is done
with them. Signatures come from `rensa`, which is in the [data] extra.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from teragpt.config import ConfigError, Problem
from teragpt.prepare.documents import Document

VALUES = 128  # of a signature
SHINGLE = 5  # words
SEED = 1
WORD = re.compile(r"\w+")
Keys = npt.NDArray[np.uint64]


def band_keys(documents: Sequence[Document], similarity: float) -> Keys:
    """A key (documents, bands) for each band of each document's signature; without bands where `similarity` is 0."""
    if not similarity:
        return np.empty((len(documents), 0), np.uint64)
    bands, rows = bands_for(similarity)
    minhash = signature_class()
    signatures = np.zeros((len(documents), VALUES), np.uint32)
    for signature, document in zip(signatures, documents, strict=True):
        one = minhash(num_perm=VALUES, seed=SEED)
        one.update(shingles(document))
        signature[:] = one.digest()
    groups = signatures[:, : bands * rows].reshape(len(documents), bands, rows)
    return joined(groups)


def shingles(document: Document) -> list[str]:
    """Every run of SHINGLE words, in lower case; the words themselves where there are fewer."""
    words = WORD.findall("\n".join(document.parts).lower())
    if len(words) < SHINGLE:
        return words or list(document.parts)
    return [" ".join(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)]


def joined(groups: npt.NDArray[np.uint32]) -> Keys:
    """One number for the values of each band (documents, bands, rows): FNV-1a over them."""
    keys = np.full(groups.shape[:2], 0xCBF29CE484222325, np.uint64)
    for row in range(groups.shape[2]):
        keys = (keys ^ groups[:, :, row].astype(np.uint64)) * np.uint64(0x100000001B3)
        keys ^= keys >> np.uint64(29)
    return keys


@cache
def bands_for(similarity: float) -> tuple[int, int]:
    """Bands and rows in a band, of VALUES in all, by which half of the pairs of that similarity are found, or more."""
    shapes = [(VALUES // rows, rows) for rows in range(1, VALUES + 1)]
    finding = [(bands, rows) for bands, rows in shapes if found(similarity, bands, rows) >= 0.5]
    return finding[-1]


def found(similarity: float, bands: int, rows: int) -> float:
    """The chance that a pair of that similarity is found."""
    return float(1 - (1 - similarity**rows) ** bands)


def signature_class() -> Any:
    """The class of signatures. Raises ConfigError that names the extra."""
    try:
        return import_module("rensa").RMinHash
    except ImportError:
        allowed = "0 where rensa is not installed (pip install '.[data]' in a checkout of TeraGPT)"
        raise ConfigError([Problem("near_duplicates", "a similarity", allowed)]) from None
