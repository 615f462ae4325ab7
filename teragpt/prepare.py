"""Text to a dataset: `teragpt prepare SOURCES -o OUT --tokenizer NAME`, on all cores and in bounded memory.

Why: training reads tokens at random, so text is turned into memory-mapped shards once. Sources are read in blocks, each
block becomes a part, and of all parts the dataset is made. Must not know how tokens are drawn for training, nor what a
document is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from teragpt.assembly import PARTS, finish, publication
from teragpt.config import ConfigError
from teragpt.dataset_files import TOKENIZER_FOLDER, Manifest, fail
from teragpt.documents import BLOCK_BYTES, Recipe
from teragpt.minhash import signature_class
from teragpt.preparation_report import summary
from teragpt.sources import find_sources
from teragpt.tokenizer import Tokenizer
from teragpt.workers import Workers, make_parts

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
        with Workers(workers, draft / PARTS, tokenizer, draft / TOKENIZER_FOLDER, recipe) as pool:
            parts = make_parts(found, pool, bar)
        return finish(parts, draft, tokenizer, recipe)


# --- the command ----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m teragpt.prepare`, for where the CLI is not installed: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser("python -m teragpt.prepare", description="Turn text into a dataset.")
    parser.add_argument("sources", nargs="+", help="files, folders, glob patterns, URLs, - for standard input")
    parser.add_argument("-o", "--out", required=True, help="the dataset's folder, which must not exist yet")
    parser.add_argument("--tokenizer", required=True, help="hub name, local folder or tokenizer file")
    parser.add_argument("--workers", type=int, default=0, help="processes; one a core unless given")
    for one in fields(Recipe):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default)
    given = parser.parse_args(arguments)
    try:
        recipe = Recipe(**{one.name: getattr(given, one.name) for one in fields(Recipe)})
        prepare(given.sources, given.out, Tokenizer(given.tokenizer), recipe, workers=given.workers)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in summary(Path(given.out)):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
