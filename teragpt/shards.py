"""The dataset's format on disk: token shards, the tokenizer beside them, and `dataset.json`, which describes both.

Why: the preparer writes it, the trainer maps it and the planner only reads its counts, so none of them may own it.
It must not know how text becomes tokens, nor in which order tokens are trained on. No torch here.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teragpt.config import ConfigError, Problem

FORMAT, VERSION = "teragpt-dataset", 1
MANIFEST = "dataset.json"
TOKENIZER_FOLDER = "tokenizer"
LOCK = ".lock"
TRAIN, VALIDATION = "train", "validation"
SHARD_TOKENS = 1 << 27  # 256 MiB of two-byte tokens


def fail(field: str, given: object, allowed: str) -> ConfigError:
    """The error that one bad input deserves."""
    return ConfigError([Problem(field, str(given), allowed)])


def cache_folder() -> Path:
    """The folder of what can be made again: TERAGPT_CACHE, else `teragpt` in the user's cache folder."""
    given = os.environ.get("TERAGPT_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(user) / "teragpt"


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Generator[None]:
    """Hold the lock file at `path`, which is made if need be; the system frees it when its holder dies.

    Raises BlockingIOError if it is held and `wait` is false, OSError if the file cannot be made.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class File:
    """One file of a dataset: its `name` in the folder, its `size` in bytes, its `sha256`."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, folder: Path, path: Path) -> File:
        """The description of a file that lies under `folder`."""
        return cls(path.relative_to(folder).as_posix(), path.stat().st_size, checksum(path))


@dataclass(frozen=True)
class Split:
    """The documents of one split, one after the other over its `shards`, each followed by the separator."""

    documents: int
    tokens: int
    shards: tuple[File, ...]


@dataclass(frozen=True)
class Manifest:
    """What `dataset.json` says. `tokenizer_fingerprint`: of the tokenizer that made the shards; `end`: its separator.

    `unigram_entropy`: nats a token costs who knows only how frequent each one is in the training split.
    """

    vocabulary: int
    end: int
    tokenizer_fingerprint: str
    tokenizer_files: tuple[File, ...]
    unigram_entropy: float
    splits: dict[str, Split]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a token in the shards: little-endian, two bytes while the vocabulary fits them."""
        return token_type(self.vocabulary)

    @property
    def files(self) -> tuple[File, ...]:
        """Every file that the dataset consists of, but for `dataset.json`."""
        return *self.tokenizer_files, *(shard for split in self.splits.values() for shard in split.shards)

    @cached_property
    def fingerprint(self) -> str:
        """Names the data: the same tokens in the same splits, made by the same tokenizer, have the same one."""
        parts = {
            name: (split.tokens, [shard.sha256 for shard in split.shards])
            for name, split in sorted(self.splits.items())
        }
        return hashlib.sha256(json.dumps([self.tokenizer_fingerprint, parts]).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `dataset.json`."""
        head = {"format": FORMAT, "version": VERSION, "dtype": self.dtype.name}
        text = json.dumps({**head, **dataclasses.asdict(self)}, indent=2)
        (folder / MANIFEST).write_text(text + "\n", "utf-8")


def token_type(vocabulary: int) -> np.dtype[Any]:
    """The smallest of the two types of a shard's tokens that holds a vocabulary."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


def read_manifest(folder: Path) -> Manifest:
    """What the dataset in `folder` consists of. Raises ConfigError that names what is missing or wrong."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise fail("data", folder, "a dataset folder made by `teragpt prepare` (no such folder)")
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise fail("data", folder, f"a dataset folder made by `teragpt prepare` (it holds no {MANIFEST})") from None
    except (OSError, ValueError) as error:
        raise fail("data", path, f"a readable JSON file ({error})") from None
    try:
        return parse_manifest(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise fail("data", path, f"a {FORMAT} of version {VERSION} ({type(error).__name__}: {error})") from None


def parse_manifest(content: dict[str, Any]) -> Manifest:
    """`dataset.json`'s content as a manifest. Raises KeyError, TypeError, ValueError or AttributeError."""
    if (content["format"], content["version"]) != (FORMAT, VERSION):
        raise ValueError(f"it is a {content['format']} of version {content['version']}")
    splits = {
        name: Split(int(split["documents"]), int(split["tokens"]), tuple(File(**file) for file in split["shards"]))
        for name, split in content["splits"].items()
    }
    manifest = Manifest(
        vocabulary=int(content["vocabulary"]),
        end=int(content["end"]),
        tokenizer_fingerprint=str(content["tokenizer_fingerprint"]),
        tokenizer_files=tuple(File(**file) for file in content["tokenizer_files"]),
        unigram_entropy=float(content["unigram_entropy"]),
        splits={TRAIN: splits[TRAIN], VALIDATION: splits[VALIDATION]},
    )
    if content["dtype"] != manifest.dtype.name:
        raise ValueError(f"{content['dtype']} tokens for a vocabulary of {manifest.vocabulary}")
    for name, split in manifest.splits.items():
        held = sum(shard.size for shard in split.shards)
        if held != split.tokens * manifest.dtype.itemsize:
            raise ValueError(f"{split.tokens} {name} tokens in shards of {held} bytes")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Refuse a dataset that isn't what was written: sizes always, content once for each state of its files.

    The content that was found good is remembered by size and modification time in the cache folder; where that
    cannot be written, content is read each time. Raises ConfigError that names the file.
    """
    state = {"fingerprint": manifest.fingerprint, "files": [measure(folder, file) for file in manifest.files]}
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    record = cache_folder() / "verified" / f"{name}.json"
    if recorded(record) == state:
        return
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with locked(record.with_suffix(".lock")):  # the ranks of a node read the content once, not each
            if recorded(record) != state:
                read_all(folder, manifest)
                record.write_text(json.dumps(state), "utf-8")
    except OSError:
        read_all(folder, manifest)


def measure(folder: Path, file: File) -> list[Any]:
    """A file's name, size and modification time (ns). Raises ConfigError if it is missing or of another size."""
    path = folder / file.name
    try:
        status = path.stat()
    except OSError as error:
        raise fail("data", path, f"a file of {file.size:,} bytes ({error.strerror})") from None
    if status.st_size != file.size:
        raise fail("data", path, f"a file of {file.size:,} bytes, not of {status.st_size:,}: prepare the dataset again")
    return [file.name, status.st_size, status.st_mtime_ns]


def recorded(record: Path) -> Any:
    """The state of a dataset's files that was found good before, if any."""
    try:
        return json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def read_all(folder: Path, manifest: Manifest) -> None:
    """Compare the content of every file with its checksum. Raises ConfigError."""
    for file in manifest.files:
        path = folder / file.name
        try:
            found = checksum(path)
        except OSError as error:
            raise fail("data", path, f"a readable file ({error.strerror})") from None
        if found != file.sha256:
            raise fail("data", path, f"content of SHA-256 {file.sha256}, not {found}: prepare the dataset again")


class SplitWriter:
    """Appends documents to the shards of one split, and counts how often each token occurs."""

    def __init__(self, folder: Path, split: str, vocabulary: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.dtype = token_type(vocabulary)
        self.counts = np.zeros(vocabulary, np.int64)
        self.documents = 0
        self.shards: list[Path] = []
        self.room = 0

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return int(self.counts.sum())

    def append(self, ids: npt.NDArray[np.int64], documents: int) -> None:
        """Append the tokens of some documents, their separators included. Raises OSError."""
        self.documents += documents
        self.counts += np.bincount(ids, minlength=len(self.counts))
        while len(ids):
            if not self.room:
                self.shards.append(self.folder / f"{self.split}-{len(self.shards):05d}.bin")
                self.room = self.shard_tokens
            head, ids = ids[: self.room], ids[self.room :]
            self.room -= len(head)
            with self.shards[-1].open("ab") as file:
                file.write(head.astype(self.dtype).tobytes())

    def take_tail(self, tokens: int) -> npt.NDArray[np.int64]:
        """Take the last `tokens` tokens off the last shard, or half of that shard if it holds fewer than twice that."""
        path = self.shards[-1]
        held = path.stat().st_size // self.dtype.itemsize
        kept = (held - min(tokens, held // 2)) * self.dtype.itemsize
        tail = np.fromfile(path, self.dtype, offset=kept).astype(np.int64)
        os.truncate(path, kept)
        self.counts -= np.bincount(tail, minlength=len(self.counts))
        return tail

    def finish(self) -> Split:
        """What was written."""
        files = tuple(File.of(self.folder, path) for path in self.shards)
        return Split(self.documents, self.tokens, files)


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """Entropy in nats of tokens that occur `counts` times each."""
    share = counts[counts > 0] / max(1, counts.sum())
    return math.fsum(-share * np.log(share))
