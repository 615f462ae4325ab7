"""Parts: what one worker has made of one block of text, kept in a file until all are there and shards are cut of them.

Why: a part depends on its block alone, so any number of workers makes the same ones in any order, and a preparation
that was killed goes on with those that are whole. It must not know where blocks come from, nor what is a duplicate.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from teragpt.config import ConfigError, Problem
from teragpt.datasets.files import token_type
from teragpt.datasets.shards import numpy_type
from teragpt.prepare.documents import Document, Dropped, Recipe, Segment, read_segments
from teragpt.prepare.minhash import band_keys
from teragpt.tokenization.tokenizer import Tokenizer

ENCODED_BYTES = 1 << 20  # of text that is tokenized in one call: the library takes a hundred bytes a token meanwhile
Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Part:
    """A part's file. Every array has an element a document, but `tokens`, which holds them one after the other."""

    path: Path

    def read(self, name: str) -> npt.NDArray[Any]:
        """One of its arrays. Raises OSError, BadZipFile, ValueError or KeyError."""
        with np.load(self.path) as arrays:
            return np.asarray(arrays[name])

    @property
    def record(self) -> dict[str, Any]:
        """What it was made of (`block`), and what was dropped."""
        return dict(json.loads(bytes(self.read("record"))))

    def whole(self, block: str) -> bool:
        """Whether it is there and made of the block of that digest."""
        try:
            return bool(self.record["block"] == block)
        except (OSError, BadZipFile, ValueError, KeyError):
            return False

    def write(self, **arrays: npt.NDArray[Any]) -> None:
        """Write it: it is absent or whole, also after a power cut. Raises OSError."""
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            with draft.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        draft.replace(self.path)


def digest_of(segments: Iterable[Segment]) -> str:
    """Names a block by its content and the sources it came from."""
    digest = hashlib.blake2b(digest_size=16)
    for source, kind, start, content in segments:
        digest.update(json.dumps([source, kind, start, len(content)]).encode())
        digest.update(content)
    return digest.hexdigest()


def make_part(
    path: Path, documents: Iterable[Document], tokenizer: Tokenizer, recipe: Recipe, block: str, dropped: Dropped
) -> None:
    """Tokenize documents into the part at `path`. Raises OSError, and what reading the documents raises."""
    ids: list[Ids] = []
    end = np.array([tokenizer.end], np.uint32)
    lengths: list[int] = []
    counts, sizes, digests, keys = [], [], [], []
    for batch in batches(documents):
        parts = [part for document in batch for part in document.parts]
        encoded = iter(tokenizer.encode_chats(parts) if recipe.chat else tokenizer.encode_batch(parts))
        for document in batch:
            before = len(ids)
            for _ in document.parts:
                ids += (next(encoded), end)
            lengths.append(sum(map(len, ids[before:])))
            counts.append(len(document.parts))
            sizes.append(document.size)
            digests.append(np.frombuffer(document.digest[:16], ">u8"))
        keys.append(band_keys(batch, recipe.near_duplicates))
    tokens = np.concatenate(ids or [end[:0]])
    record = json.dumps({"block": block, "dropped": dropped.reasons}).encode()
    Part(path).write(
        tokens=tokens.astype(numpy_type(token_type(tokenizer.vocabulary))),
        lengths=np.array(lengths, np.int64),
        counts=np.array(counts, np.int64),
        sizes=np.array(sizes, np.int64),
        digests=np.array(digests, np.uint64).reshape(-1, 2),
        record=np.frombuffer(record, np.uint8),
        **{f"band{band}": column for band, column in enumerate(np.concatenate(keys).T if keys else ())},
    )


def batches(documents: Iterable[Document], size: int = ENCODED_BYTES) -> Iterator[list[Document]]:
    """Documents in lists of about `size` bytes of text."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += document.size
        if held >= size:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


# --- in a worker ----------------------------------------------------------------------------------------------------

_worker: dict[str, Any] = {}  # what a worker process opens once


def start_worker(tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Prepare a worker process: it takes one core, leaves interrupts to its parent, and ends with it."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker.update(tokenizer=tokenizer, recipe=recipe)


def end_with_parent() -> None:
    """Wait for the parent's end, and end. The kernel's own signal comes at the end of the thread that made us."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(128 + signal.SIGKILL)


def work(path: Path, segments: Sequence[Segment]) -> tuple[Problem, ...]:
    """Make a part in a worker process, unless it is there; returns what is wrong with its text. Raises OSError."""
    return part_of(path, segments, _worker["tokenizer"], _worker["recipe"])


def part_of(path: Path, segments: Sequence[Segment], tokenizer: Tokenizer, recipe: Recipe) -> tuple[Problem, ...]:
    """Make a part, unless it is there; returns what is wrong with its text. Raises OSError."""
    block = digest_of(segments)
    if Part(path).whole(block):
        return ()
    dropped, say = Dropped(), tokenizer.chat_text if recipe.chat else None
    try:
        make_part(path, read_segments(segments, recipe, dropped, say), tokenizer, recipe, block, dropped)
    except ConfigError as error:  # as a value, since an exception of several problems does not travel
        return error.problems
    return ()
