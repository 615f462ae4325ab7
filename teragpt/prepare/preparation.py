"""Text to a dataset, on all cores and in bounded memory.

Why: training reads tokens at random, so text is turned into memory-mapped shards once. Sources are read in blocks, each
block becomes a part, and of all parts the dataset is made. Must not know how tokens are drawn for training, nor what a
document is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from teragpt.dataset_files import Manifest, fail
from teragpt.prepare.assembly import PARTS, finish, publication
from teragpt.prepare.documents import BLOCK_BYTES, Recipe
from teragpt.prepare.minhash import signature_class
from teragpt.prepare.sources import find_sources
from teragpt.prepare.workers import Workers, make_parts
from teragpt.tokenizer import Tokenizer

DEFAULT = Recipe()


def prepare(
    sources: Sequence[Path | str],
    out: Path | str,
    tokenizer: Tokenizer,
    recipe: Recipe = DEFAULT,
    *,
    workers: int = 0,
    progress: bool = True,
) -> Manifest:
    """Make the dataset `out` from files, folders (every file in them but hidden ones), patterns, URLs, `-` (stdin).

    A document goes to the validation split with probability `recipe.validation`, drawn by its content; where none
    went, the split is the end of the training tokens. `workers` processes (0: one a core) make the same dataset
    whatever their number. A preparation that is cut off goes on when it is called again with the same recipe; one that
    fails before anything is done leaves nothing. Raises ConfigError that names the source, the setting or `out`.
    """
    if workers < 0:
        raise fail("workers", workers, "a number of processes, or 0 for one a core")
    if recipe.near_duplicates:
        signature_class()
    if recipe.chat and tokenizer.chat_template is None:
        raise fail("tokenizer", tokenizer.name, "one with a chat template (chat_template.jinja beside its files)")
    found = find_sources(sources, recipe.format)
    sizes = [source.size for source in found]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    if total == 0:
        raise fail("sources", ", ".join(map(str, sources)), "at least one file that is not empty")
    small = total is not None and total <= BLOCK_BYTES
    workers = 1 if small else workers or len(os.sched_getaffinity(0))
    with (
        publication(Path(out), tokenizer, recipe) as draft,
        tqdm(total=total, unit="B", unit_scale=True, desc="prepare", disable=None if progress else True) as bar,
    ):
        with Workers(workers, draft / PARTS, tokenizer, recipe) as pool:
            parts = make_parts(found, pool, bar)
        return finish(parts, draft, tokenizer, recipe)
