"""Text files to a dataset: `python -m teragpt.prepare SOURCES -o OUT --tokenizer NAME`.

Why: training reads tokens at random, so text is turned into memory-mapped shards once. Documents are read, split by
their content's hash and written as they come; memory holds one batch of them. A dataset is published by renaming its
folder, so it is whole or absent. Must not know how tokens are drawn for training.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import os
import shutil
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from teragpt.config import ConfigError
from teragpt.dataset_files import MANIFEST, TOKENIZER_FOLDER, TRAIN, VALIDATION, File, Manifest, fail
from teragpt.shards import SHARD_TOKENS, SplitWriter, entropy
from teragpt.storage import locked
from teragpt.tokenizer import Tokenizer

LOCK = ".lock"
DOCUMENT_BYTES = 1 << 20  # a longer file becomes several documents
BATCH_BYTES = 4 << 20  # of text that is tokenized at once, on all cores


@dataclass(frozen=True)
class Document:
    """A document in `parts`, each followed by the separator; all of them go to the same split."""

    parts: tuple[str, ...]

    @cached_property
    def size(self) -> int:
        """Its text in bytes."""
        return sum(len(part.encode()) for part in self.parts)

    @property
    def point(self) -> float:
        """A number in [0, 1) drawn by the content, so that equal documents share a split."""
        digest = hashlib.sha256("\0".join(self.parts).encode()).digest()
        return int.from_bytes(digest[:7], "big") / (1 << 56)


def prepare(
    sources: Sequence[Path | str],
    out: Path | str,
    tokenizer: Tokenizer,
    *,
    validation: float = 0.01,
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = True,
) -> Manifest:
    """Make the dataset `out` from text: files, folders (every file in them but hidden ones) and glob patterns.

    A document goes to the validation split with probability `validation`; where none went, the split is the end of
    the training tokens. Raises ConfigError that names the source or `out`; then nothing is left of `out`.
    """
    if not 0 <= validation < 1:
        raise fail("validation", validation, "a share from 0 up to, not including, 1")
    if shard_tokens < 2:
        raise fail("shard_tokens", shard_tokens, "at least 2 tokens")
    files = list(find_files(sources))
    total = sum(path.stat().st_size for path in files)
    if not total:
        raise fail("sources", ", ".join(map(str, sources)), "at least one file that is not empty")
    with tqdm(total=total, unit="B", unit_scale=True, desc="prepare", disable=None if progress else True) as bar:
        documents = counted((document for path in files for document in read_documents(path)), bar)
        return write(documents, Path(out), tokenizer, validation, shard_tokens)


def counted(documents: Iterable[Document], bar: tqdm[NoReturn]) -> Iterator[Document]:
    """The documents, while a bar shows how far they are."""
    for document in documents:
        yield document
        bar.update(document.size)


def find_files(sources: Sequence[Path | str]) -> Iterator[Path]:
    """The files that sources stand for, in a fixed order. Raises ConfigError for a source that stands for none."""
    for source in sources:
        try:
            found = sorted(path for path in candidates(Path(source)) if path.is_file())
        except OSError as error:
            raise fail("sources", source, f"files that can be read ({error.filename}: {error.strerror})") from None
        if not found:
            raise fail("sources", source, "a text file, or a folder or glob pattern with files in it (it has none)")
        if found == [Path(source)] and not found[0].stat().st_size:
            raise fail("sources", source, "a text file that is not empty")
        yield from found


def candidates(source: Path) -> Iterable[Path]:
    """What a source may stand for. Raises ConfigError if it is no path, nor a pattern; OSError if it can't be read."""
    if source.is_dir():
        return walk(source)
    if source.exists():
        return [source]
    if glob.has_magic(str(source)):
        return map(Path, glob.glob(str(source), recursive=True))  # noqa: PTH207 (a Path's glob takes no absolute one)
    raise fail("sources", source, "a text file, a folder or a glob pattern (no such file)")


def walk(folder: Path) -> Iterator[Path]:
    """Every file in a folder and below, but for names that start with a dot. Raises OSError."""

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def read_documents(path: Path) -> Iterator[Document]:
    """A text file's documents: the file, or pieces of a long one that end with a line. Raises ConfigError."""
    position, rest = 0, b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(DOCUMENT_BYTES - len(rest)):
                held = rest + chunk
                cut = len(held) if len(held) < DOCUMENT_BYTES else boundary(held)
                yield Document((decode(path, position, held[:cut]),))
                position, rest = position + cut, held[cut:]
    except OSError as error:
        raise fail("sources", path, f"a readable text file ({error.strerror})") from None
    if rest:
        yield Document((decode(path, position, rest),))


def boundary(held: bytes) -> int:
    """Where to cut bytes that go on: after the last line, or else before the last character."""
    cut = held.rfind(b"\n") + 1
    if cut:
        return cut
    return next((at for at in range(len(held) - 1, len(held) - 5, -1) if held[at] & 0xC0 != 0x80), len(held))


def decode(path: Path, position: int, held: bytes) -> str:
    """The text of bytes that stand at `position` in a file. Raises ConfigError with the offset of what is no text."""
    binary = held.find(b"\0")
    if binary >= 0:
        raise fail("sources", path, f"a text file (binary: a zero byte at offset {position + binary})")
    try:
        return held.decode("utf-8")
    except UnicodeDecodeError as error:
        at, byte = position + error.start, held[error.start]
        raise fail("sources", path, f"UTF-8 text (byte 0x{byte:02x} at offset {at}: {error.reason})") from None


def write(
    documents: Iterable[Document], out: Path, tokenizer: Tokenizer, validation: float, shard_tokens: int = SHARD_TOKENS
) -> Manifest:
    """Write documents as the dataset `out`, which appears whole or not at all.

    Raises ConfigError if `out` holds anything, is being written by another process, or cannot be written.
    """
    try:
        with published(out.absolute()) as draft:
            manifest = fill(documents, draft, tokenizer, validation, shard_tokens)
            manifest.write(draft)
    except BlockingIOError:
        raise fail("out", out, "a folder that no other process is preparing at this moment") from None
    except OSError as error:
        raise fail("out", out, f"a folder that can be written, with room for the tokens ({error.strerror})") from None
    return manifest


@contextmanager
def published(out: Path) -> Generator[Path]:
    """A folder to write into: it becomes `out` when the block ends, and goes when the block fails.

    Raises BlockingIOError if another process is at it, ConfigError if something is at `out`, OSError.
    """
    vacant(out)
    draft = out.with_name(f".{out.name}.partial")
    draft.mkdir(parents=True, exist_ok=True)
    with locked(draft / LOCK, wait=False):
        try:
            clear(draft)  # of what a killed process left
            yield draft
            settle(draft)
            draft.replace(out)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    (out / LOCK).unlink()


def vacant(out: Path) -> None:
    """Refuse a place where something is. Raises ConfigError."""
    if (out / MANIFEST).exists():
        raise fail("out", out, "a folder that does not exist yet (a dataset is there: remove it or name another)")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise fail("out", out, "a folder that does not exist yet or is empty (something else is there)")


def clear(draft: Path) -> None:
    """Empty a draft, but for its lock."""
    for path in draft.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def settle(folder: Path) -> None:
    """Wait until the files of a folder are on the disk, so that a rename never shows one that isn't."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def fill(
    documents: Iterable[Document], folder: Path, tokenizer: Tokenizer, validation: float, shard_tokens: int
) -> Manifest:
    """Write shards and tokenizer into a folder, and say what was written. Raises OSError."""
    train, held_out = (SplitWriter(folder, split, tokenizer.vocabulary, shard_tokens) for split in (TRAIN, VALIDATION))
    for batch in batches(documents):
        held = [document.point < validation for document in batch]
        held[0] = held[0] and train.documents > 0  # something must be left to train on
        append(train, [one for one, out in zip(batch, held, strict=True) if not out], tokenizer)
        append(held_out, [one for one, out in zip(batch, held, strict=True) if out], tokenizer)
    if validation and not held_out.documents:
        tail = train.take_tail(max(1, round(validation * train.tokens)))
        held_out.append(tail, 1)
    tokenizer.save(folder / TOKENIZER_FOLDER)
    files = sorted((folder / TOKENIZER_FOLDER).iterdir())
    return Manifest(
        vocabulary=tokenizer.vocabulary,
        end=tokenizer.end,
        tokenizer_fingerprint=tokenizer.fingerprint,
        tokenizer_files=tuple(File.of(folder, path) for path in files),
        unigram_entropy=entropy(train.counts),
        splits={TRAIN: train.finish(), VALIDATION: held_out.finish()},
    )


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about BATCH_BYTES of text."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.size
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def append(writer: SplitWriter, documents: Sequence[Document], tokenizer: Tokenizer) -> None:
    """Tokenize documents and append them to a split."""
    parts = [part for document in documents for part in document.parts]
    if not parts:
        return
    ids = [np.array([*part, tokenizer.end], np.int64) for part in tokenizer.encode_batch(parts)]
    writer.append(np.concatenate(ids), len(parts))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser("python -m teragpt.prepare", description="Turn text into a dataset.")
    parser.add_argument("sources", nargs="+", help="text files, folders, glob patterns")
    parser.add_argument("-o", "--out", required=True, help="the dataset's folder, which must not exist yet")
    parser.add_argument("--tokenizer", required=True, help="hub name, local folder or tokenizer.json")
    parser.add_argument("--validation", type=float, default=0.01, help="share of documents held out (default: 0.01)")
    given = parser.parse_args(arguments)
    try:
        manifest = prepare(given.sources, given.out, Tokenizer(given.tokenizer), validation=given.validation)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, split in manifest.splits.items():
        shards = "1 shard" if len(split.shards) == 1 else f"{len(split.shards)} shards"
        print(f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {shards}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
