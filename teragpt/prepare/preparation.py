"""Text to a dataset, on all cores and in bounded memory.

Why: training reads tokens at random, so text is turned into memory-mapped shards once. Sources are read in blocks, each
block becomes a part, and of all parts the dataset is made. Must not know how tokens are drawn for training, nor what a
document is.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from teragpt.datasets.files import Manifest, fail
from teragpt.prepare.assembly import PARTS, finish, publication
from teragpt.prepare.documents import BLOCK_BYTES, Recipe
from teragpt.prepare.minhash import signature_class
from teragpt.prepare.report import TOLD_EVERY_S, told, untold
from teragpt.prepare.sources import find_sources
from teragpt.prepare.workers import Workers, make_parts
from teragpt.tokenization.tokenizer import Tokenizer

DEFAULT = Recipe()


def prepare(
    sources: Sequence[Path | str],
    out: Path | str,
    tokenizer: Tokenizer,
    recipe: Recipe = DEFAULT,
    *,
    config: str = "",
    split: str = "",
    workers: int = 0,
    progress: bool = True,
    run: str = "",
) -> Manifest:
    """Make the dataset `out`, a folder or an object store's URL, from files, folders, patterns, URLs, `-` (stdin).

    A source may be the name of a dataset at the hub, of which `config` and `split` (`train`) choose files.
    A document goes to the validation split with probability `recipe.validation`, drawn by its content; where none
    went, the split is the end of the training tokens. `workers` processes (0: one a core) make the same dataset
    whatever their number. A preparation that is cut off goes on when it is called again with the same recipe; one that
    fails before anything is done leaves nothing; into a store it begins anew. `progress` is a bar on a terminal, and a
    line of stderr every ten seconds elsewhere. `run` is kept with the dataset, as the id of what asked for it. Raises
    ConfigError that names the source, the setting or `out`.
    """
    if workers < 0:
        raise fail("workers", workers, "a number of processes, or 0 for one a core")
    if recipe.near_duplicates:
        signature_class()
    if recipe.chat and tokenizer.chat_template is None:
        raise fail("tokenizer", tokenizer.name, "one with a chat template (chat_template.jinja beside its files)")
    found = find_sources(sources, recipe.format, config, split)
    sizes = [source.size for source in found]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    if total == 0:
        raise fail("sources", ", ".join(map(str, sources)), "at least one file that is not empty")
    small = total is not None and total <= BLOCK_BYTES
    workers = 1 if small else workers or len(os.sched_getaffinity(0))
    tell = told if progress and not sys.stderr.isatty() else untold
    with publication(out, tokenizer, recipe, tell) as draft:
        with (
            closing(shown(total) if progress else tqdm(disable=True)) as bar,
            Workers(workers, draft / PARTS, tokenizer, recipe) as pool,
        ):
            parts = make_parts(found, pool, bar)
        return finish(parts, draft, tokenizer, recipe, tell, run)


def shown(total: int | None) -> tqdm[NoReturn] | Lines:
    """What shows how far a preparation is: a bar on a terminal, lines elsewhere."""
    if sys.stderr.isatty():
        return tqdm(total=total, unit="B", unit_scale=True, desc="prepare")
    return Lines(total)


class Lines:
    """Tells on stderr how much of the text is done, for who reads a log; nothing where it is done at once."""

    def __init__(self, total: int | None) -> None:
        self.total, self.done, self.begun = total, 0, time.monotonic()
        self.told, self.lock = self.begun, threading.Lock()

    def update(self, n: int) -> None:
        """So many bytes more are done."""
        with self.lock:
            self.done += n
            if time.monotonic() - self.told >= TOLD_EVERY_S:
                self.told = time.monotonic()
                print(self.line(self.told - self.begun), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """How far it is, and after as many seconds, how long it will go on."""
        rate = self.done / seconds
        at = f"prepare: {self.done / 1e6:,.1f}"
        if not self.total:
            return f"{at} MB, {rate / 1e6:,.2f} MB/s"
        left = max(0, self.total - self.done) / max(rate, 1)
        share = self.done / self.total
        return f"{at} of {self.total / 1e6:,.1f} MB ({share:.0%}), {rate / 1e6:,.2f} MB/s, {left / 60:,.1f} min left"

    def close(self) -> None:
        """The text is read: what is left is told, too, since it may take its time."""
        if self.told > self.begun:
            print("prepare: all text is read; writing the dataset", file=sys.stderr, flush=True)
