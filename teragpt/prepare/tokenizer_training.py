"""Tokenizers from text, and what one makes of it: `teragpt tokenizer train` and `teragpt tokenizer inspect`.

Why: how many bytes a token stands for decides what a model costs, and it depends on the kind of text. It reads the same
sources as a preparation. It must not know what is trained on the tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from teragpt.datasets.files import fail
from teragpt.prepare.assembly import published
from teragpt.prepare.documents import DOCUMENT_BYTES, Document, Dropped, Recipe, read_segments
from teragpt.prepare.parts import batches
from teragpt.prepare.sources import Source, blocks, find_sources
from teragpt.tokenization.pieces import PROSE_PIECES
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe

EXAMPLES = 10  # of entries that no text used


def train_tokenizer(
    sources: Sequence[Path | str], out: Path, vocabulary: int, recipe: Recipe, special: Sequence[str] = ()
) -> Tokenizer:
    """A byte-level BPE of at most `vocabulary` tokens from the documents of sources, in the new folder `out`.

    `special` tokens stand beside the separator; no text becomes one. The same documents give the same tokenizer.
    Raises ConfigError.
    """
    found = find_sources(sources, recipe.format)
    try:
        with published(out.absolute()) as draft, progress("train the tokenizer", found) as bar:
            texts = (part for source in found for one in documents_of(source, recipe, bar) for part in one.parts)
            made = train_bpe(texts, vocabulary, PROSE_PIECES, special)
            made.save(draft)
    except BlockingIOError:
        raise fail("out", out, "a folder that no other process is writing at this moment") from None
    except OSError as error:
        raise fail("out", out, f"a folder that can be written ({error.strerror or error})") from None
    return made


def progress(what: str, sources: Sequence[Source]) -> Any:
    """A bar over the bytes of sources."""
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    return tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None)


def documents_of(source: Source, recipe: Recipe, bar: Any) -> Iterator[Document]:
    """A source's documents, while a bar shows how far they are. Raises ConfigError."""
    for block in blocks([source], recipe):
        yield from read_segments(block.segments, recipe, Dropped())
        bar.update(block.read)


@dataclass(frozen=True)
class Inspected:
    """What a tokenizer is, and what it makes of text: bytes and tokens by `kinds` of files, `unused` entries.

    `examples` are the first of those entries; None and no kinds where no text was given.
    """

    entries: int
    separator: str
    separator_id: int
    fingerprint: str
    kinds: dict[str, dict[str, int]]
    unused: int | None = None
    examples: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The same for people."""
        yield f"{self.entries:,} entries, separator {self.separator} ({self.separator_id})"
        yield f"fingerprint {self.fingerprint}"
        for kind, held in self.kinds.items():
            size, tokens = held["bytes"], held["tokens"]
            yield f"{kind}: {size:,} bytes, {tokens:,} tokens, {size / max(1, tokens):.2f} bytes a token"
        if self.unused is not None:
            shown = f", as {', '.join(self.examples)}" if self.examples else ""
            yield f"unused: {self.unused:,} entries ({self.unused / self.entries:.1%}){shown}"


def inspect(tokenizer: Tokenizer, sources: Sequence[Path | str], recipe: Recipe) -> Inspected:
    """What a tokenizer is, and what it makes of sources by the kind of their files. Raises ConfigError."""
    what = (tokenizer.vocabulary, tokenizer.end_token, tokenizer.end, tokenizer.fingerprint)
    if not sources:
        return Inspected(*what, {})
    kinds: dict[str, dict[str, int]] = {}
    used = np.zeros(tokenizer.vocabulary, np.int64)
    found = find_sources(sources, recipe.format)
    with progress("inspect", found) as bar:
        for source in found:
            size, tokens = measure(tokenizer, source, recipe, used, bar)
            suffix = os.path.splitext(source.name)[1] or "no suffix"  # noqa: PTH122 - or a URL
            held = kinds.setdefault(suffix, {"bytes": 0, "tokens": 0})
            held["bytes"], held["tokens"] = held["bytes"] + size, held["tokens"] + tokens
    never = [int(entry) for entry in np.flatnonzero(used == 0) if entry != tokenizer.end]
    examples = tuple(tokenizer.entry(entry) for entry in never[:EXAMPLES])
    return Inspected(*what, dict(sorted(kinds.items())), len(never), examples)


def measure(
    tokenizer: Tokenizer, source: Source, recipe: Recipe, used: npt.NDArray[np.int64], bar: Any
) -> tuple[int, int]:
    """Bytes and tokens of a source, whose tokens are counted in `used`. Raises ConfigError."""
    size = tokens = 0
    for batch in batches(documents_of(source, recipe, bar), DOCUMENT_BYTES):
        size += sum(one.size for one in batch)
        for ids in tokenizer.encode_batch([part for one in batch for part in one.parts]):
            tokens += len(ids)
            used += np.bincount(ids, minlength=len(used))
    return size, tokens
