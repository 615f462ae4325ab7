"""Parts to a dataset: duplicates are found, shards are cut, and the folder is published by renaming it.

Why: a dataset is whole or absent, and what a killed process has done is found again. Into an object store it is put
file by file, `dataset.json` last. It must not know where documents come from, nor how many workers made the parts.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teragpt.config import ConfigError, Problem
from teragpt.datasets.files import MANIFEST, TOKENIZER_FOLDER, TRAIN, VALIDATION, File, Manifest, fail, load_manifest
from teragpt.datasets.shards import SplitWriter, entropy, write_digests
from teragpt.prepare.documents import BLOCK_BYTES, Document, Dropped, Recipe
from teragpt.prepare.duplicates import EXACT, KEPT, NEAR, find_duplicates
from teragpt.prepare.parts import Part, batches, make_part
from teragpt.prepare.report import Tally, Tell, untold, write_report
from teragpt.storage import Bucket, folder_at, locked
from teragpt.tokenization.tokenizer import Tokenizer

LOCK, RECIPE, PARTS, CODES = ".lock", "recipe.json", "parts", "dropped.bin"
CLAIM = "preparing"  # in a store: who puts a dataset there, until it is whole
AT_ONCE = 8  # files; one stream to a store is slow
DUPLICATES = {EXACT: "exact duplicate", NEAR: "near duplicate"}


class Busy(ConfigError):
    """Another process prepares the same dataset: what is refused now may be right later."""


def write(documents: Iterable[Document], out: Path, tokenizer: Tokenizer, recipe: Recipe) -> Manifest:
    """Write documents that are at hand as the dataset `out`, which appears whole or not at all. Raises ConfigError."""
    with publication(out, tokenizer, recipe) as draft:
        shutil.rmtree(draft / PARTS)  # of a killed one, whose documents are not known to be these
        (draft / PARTS).mkdir()
        parts = []
        for number, batch in enumerate(batches(documents, BLOCK_BYTES)):
            parts.append(Part(draft / PARTS / f"{number:06d}.npz"))
            make_part(parts[-1].path, batch, tokenizer, recipe, "", Dropped())
        return finish(parts, draft, tokenizer, recipe)


# --- parts to shards ------------------------------------------------------------------------------------------------


def finish(
    parts: Sequence[Part], draft: Path, tokenizer: Tokenizer, recipe: Recipe, tell: Tell = untold, run: str = ""
) -> Manifest:
    """Find duplicates, cut shards, and leave in the draft what a dataset consists of. Raises OSError, ConfigError."""
    documents = sum(len(part.read("lengths")) for part in parts)
    codes = np.memmap(draft / CODES, np.uint8, "w+", shape=(max(1, documents),))[:documents]
    find_duplicates(parts, recipe, codes, tell)
    tally = Tally()
    splits = fill(tell(parts, "documents written"), codes, draft, tokenizer, recipe, tally)
    if not splits[TRAIN].tokens:
        shutil.rmtree(draft / PARTS)
        why = ", ".join(f"{one['documents']} {reason}" for reason, one in tally.dropped.reasons.items()) or "all empty"
        raise fail("sources", f"{documents} documents", f"text of which a document is left ({why})")
    files = sorted((draft / TOKENIZER_FOLDER).iterdir())
    written = {name: split.finish() for name, split in splits.items()}
    manifest = Manifest(
        vocabulary=tokenizer.vocabulary,
        end=tokenizer.end,
        tokenizer_fingerprint=tokenizer.fingerprint,
        tokenizer_files=tuple(File.of(draft, path) for path in files),
        unigram_entropy=entropy(splits[TRAIN].counts),
        splits=written,
        blocks=write_digests(draft, tell([*chain(*(split.shards for split in written.values()))], "shards summed up")),
        run=run or None,
    )
    write_report(tally.report(manifest), draft)
    shutil.rmtree(draft / PARTS)
    for name in (CODES, RECIPE):
        (draft / name).unlink()
    manifest.write(draft)
    return manifest


def fill(
    parts: Iterable[Part], codes: npt.NDArray[np.uint8], draft: Path, tokenizer: Tokenizer, recipe: Recipe, tally: Tally
) -> dict[str, SplitWriter]:
    """Write the documents that are kept into the splits' shards, in the parts' order. Raises OSError."""
    train, held_out = (
        SplitWriter(draft, split, tokenizer.vocabulary, recipe.shard_tokens) for split in (TRAIN, VALIDATION)
    )
    start = 0
    for part in parts:
        lengths, counts, sizes, digests = (part.read(name) for name in ("lengths", "counts", "sizes", "digests"))
        code = codes[start : start + len(lengths)]
        start += len(lengths)
        tally.dropped.merge(part.record["dropped"])
        for reason, name in DUPLICATES.items():
            if (repeated := code == reason).any():
                tally.dropped.add(name, int(sizes[repeated].sum()), count=int(repeated.sum()))
        held = (digests[:, 0] >> np.uint64(8)) / (1 << 56) < recipe.validation  # Document.point
        kept = np.flatnonzero(code == KEPT)
        if len(kept) and not train.documents:
            held[kept[0]] = False  # something must be left to train on
        tokens = part.read("tokens")
        for writer, mine in ((train, (code == KEPT) & ~held), (held_out, (code == KEPT) & held)):
            writer.append(tokens if mine.all() else tokens[np.repeat(mine, lengths)], int(counts[mine].sum()))
        tally.add(sizes[kept], lengths[kept])
    if recipe.validation and not held_out.documents and train.tokens > 1:
        tail = train.take_tail(max(1, round(recipe.validation * train.tokens)))
        held_out.append(tail, 1)
    return {TRAIN: train, VALIDATION: held_out}


# --- publication ----------------------------------------------------------------------------------------------------


@contextmanager
def publication(out: Path | str, tokenizer: Tokenizer, recipe: Recipe, tell: Tell = untold) -> Generator[Path]:
    """A draft with the tokenizer and room for parts, which becomes `out` when the block ends. Raises ConfigError."""
    place = folder_at(out, "out")
    try:
        with uploaded(place, tell) if isinstance(place, Bucket) else published(Path(out).absolute()) as draft:
            settle_recipe(draft, tokenizer, recipe)
            yield draft
    except BlockingIOError:
        raise Busy([Problem("out", str(out), "a folder that no other process is preparing at this moment")]) from None
    except OSError as error:
        said = error.strerror or str(error)
        raise fail("out", out, f"a folder that can be written, with room for the tokens ({said})") from None


@contextmanager
def published(out: Path) -> Generator[Path]:
    """A folder to write into: it becomes `out` when the block ends.

    When the block fails it goes, unless a part in it is worth going on with. Raises BlockingIOError if another process
    is at it, ConfigError if something is at `out`, OSError.
    """
    vacant(out)
    draft = out.with_name(f".{out.name}.partial")
    draft.mkdir(parents=True, exist_ok=True)
    with locked(draft / LOCK, wait=False):
        try:
            yield draft
            settle(draft)
            draft.replace(out)
        except BaseException:
            if any(draft.glob(f"{PARTS}/*.npz")):
                print(f"what is done is kept in {draft}: the same command goes on from there", file=sys.stderr)
            else:
                shutil.rmtree(draft, ignore_errors=True)
            raise
    (out / LOCK).unlink(missing_ok=True)


@contextmanager
def uploaded(store: Bucket, tell: Tell = untold) -> Generator[Path]:
    """A folder of this machine to write into: it is put into the store when the block ends, unless the block fails.

    What a killed one has put there gives way. Raises BlockingIOError if another process has begun meanwhile,
    ConfigError if something is there that none has left, OSError.
    """
    there = store.entries()
    if MANIFEST in there or (there and CLAIM not in there):
        what = "a dataset is there: remove it or name another" if MANIFEST in there else "something else is there"
        raise fail("out", store, f"a folder that does not exist yet or is empty ({what})")
    mine = os.urandom(8).hex().encode()
    store.write(CLAIM, mine)
    with tempfile.TemporaryDirectory(prefix="teragpt-") as scratch:
        draft = Path(scratch)
        try:
            yield draft
            put(draft, store, mine, tell)
        except BaseException:
            if MANIFEST not in store.entries() and store.read(CLAIM) == mine:
                clear(store, ())
                store.discard(CLAIM)
            raise
    store.discard(CLAIM)


def put(draft: Path, store: Bucket, mine: bytes, tell: Tell = untold) -> None:
    """Put all files of a folder into a store, `dataset.json` last, where nothing else stays. Raises OSError.

    BlockingIOError if the claim is not `mine` any more.
    """
    names = [path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file()]
    names.remove(MANIFEST)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sent = pool.map(lambda name: store.upload(draft / name, name), names)
        for _ in tell(names, "files uploaded"):
            next(sent)
    clear(store, names)
    if store.read(CLAIM) != mine:
        raise BlockingIOError
    store.create(MANIFEST, (draft / MANIFEST).read_bytes())


def clear(store: Bucket, keep: Sequence[str]) -> None:
    """Remove what a dataset's preparation has put into a store, but for the claim and what is kept. Raises OSError."""
    for within in ("", f"{TOKENIZER_FOLDER}/"):
        entries = (store / TOKENIZER_FOLDER if within else store).entries()
        for name in (f"{within}{name}" for name, size in entries.items() if size is not None):
            if name != CLAIM and name not in keep:
                store.discard(name)


def settle_recipe(draft: Path, tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Keep a draft's parts where they were made by this recipe and tokenizer, and clear all else. Raises OSError."""
    about = {"tokenizer": tokenizer.fingerprint, "chat_template": tokenizer.chat_template if recipe.chat else None}
    asked = json.dumps({**asdict(recipe), **about}, sort_keys=True)
    try:
        same = (draft / RECIPE).read_text("utf-8") == asked
    except OSError:
        same = False
    for path in draft.iterdir():
        if path.name != LOCK and not (same and path.name in {PARTS, RECIPE}):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (draft / PARTS).mkdir(exist_ok=True)
    tokenizer.save(draft / TOKENIZER_FOLDER)
    (draft / RECIPE).write_text(asked, "utf-8")


def published_by(run: str, out: Path | str) -> bool:
    """Whether the dataset `out` is whole and made by that run: by an attempt that died, or was not seen to end, after.

    What that has left beside it goes.
    """
    try:
        place = folder_at(out, "out")
        if not run or load_manifest(place.read(MANIFEST), out).run != run:
            return False
        if isinstance(place, Bucket):
            place.discard(CLAIM)
        else:
            (Path(out) / LOCK).unlink(missing_ok=True)
    except (OSError, ConfigError):
        return False
    return True


def vacant(out: Path) -> None:
    """Refuse a place where something is. Raises ConfigError."""
    if (out / MANIFEST).exists():
        raise fail("out", out, "a folder that does not exist yet (a dataset is there: remove it or name another)")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise fail("out", out, "a folder that does not exist yet or is empty (something else is there)")


def settle(folder: Path) -> None:
    """Wait until the files of a folder are on the disk, so that a rename never shows one that isn't."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
