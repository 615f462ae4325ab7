"""What lies in a dataset's shards: written token by token, and compared with its checksums before it is trained on.

Why: the preparer writes shards, the trainer maps them. It must not know how text becomes tokens, nor in which order
tokens are trained on. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from teragpt.datasets.files import (
    BLOCK_BYTES,
    BLOCKS_FILE,
    DIGEST_BYTES,
    Blocks,
    File,
    Manifest,
    Split,
    checksum,
    fail,
    measure,
    token_type,
)
from teragpt.storage import cache_folder, locked

Ids = npt.NDArray[np.unsignedinteger]


class Shard(Protocol):
    """The tokens of one shard, wherever it lies."""

    def __len__(self) -> int: ...

    def ask(self, start: int, stop: int) -> Callable[[], Ids]:
        """Begin to bring tokens `start` to `stop`, of which there are as many; what is returned waits for them."""
        ...


class MappedShard:
    """A shard on a disk of this machine."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.tokens: Ids = np.frombuffer(self.map, dtype)

    def __len__(self) -> int:
        return len(self.tokens)

    def ask(self, start: int, stop: int) -> Callable[[], Ids]:
        """See Shard: the system reads what is not in memory yet, all that was asked for at once."""
        first = start * self.tokens.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
        self.map.madvise(mmap.MADV_WILLNEED, first, stop * self.tokens.itemsize - first)
        return lambda: self.tokens[start:stop]


def write_digests(folder: Path, shards: Iterable[File]) -> Blocks:
    """Write the digests of the blocks of shards that lie in `folder`. Raises OSError."""
    with (folder / BLOCKS_FILE).open("wb") as out:
        for shard in shards:
            with (folder / shard.name).open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    out.write(block_digest(block))
    return Blocks(BLOCK_BYTES, File.of(folder, folder / BLOCKS_FILE))


def block_digest(content: bytes) -> bytes:
    """A block's digest."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def verify(folder: Path, manifest: Manifest, files: Sequence[File] = ()) -> None:
    """Refuse a dataset, or some `files` of it, that isn't what was written: sizes always, content once for each state.

    The content that was found good is remembered by size and modification time in the cache folder; where that
    cannot be written, content is read each time. Raises ConfigError that names the file.
    """
    files = files or manifest.files
    state = {"fingerprint": manifest.fingerprint, "files": [measure(folder, file) for file in files]}
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    record = cache_folder() / "verified" / f"{name}.json"
    if recorded(record) == state:
        return
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with locked(record.with_suffix(".lock")):  # the ranks of a node read the content once, not each
            if recorded(record) != state:
                read_all(folder, files)
                record.write_text(json.dumps(state), "utf-8")
    except OSError:
        read_all(folder, files)


def recorded(record: Path) -> Any:
    """The state of a dataset's files that was found good before, if any."""
    try:
        return json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def read_all(folder: Path, files: Iterable[File]) -> None:
    """Compare the content of files with their checksums. Raises ConfigError."""
    for file in files:
        path = folder / file.name
        try:
            found = checksum(path)
        except OSError as error:
            raise fail("data", path, f"a readable file ({error.strerror})") from None
        if found != file.sha256:
            raise fail("data", path, f"content of SHA-256 {file.sha256}, not {found}: prepare the dataset again")


def numpy_type(name: str) -> np.dtype[Any]:
    """A shard's type of token: little-endian whatever the machine."""
    return np.dtype(name).newbyteorder("<")


class SplitWriter:
    """Appends documents to the shards of one split, and counts how often each token occurs."""

    def __init__(self, folder: Path, split: str, vocabulary: int, shard_tokens: int) -> None:
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.dtype = numpy_type(token_type(vocabulary))
        self.counts = np.zeros(vocabulary, np.int64)
        self.documents = 0
        self.shards: list[Path] = []
        self.room = 0

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return int(self.counts.sum())

    def append(self, ids: npt.NDArray[np.unsignedinteger], documents: int) -> None:
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
                file.write(head.astype(self.dtype, copy=False).data)

    def take_tail(self, tokens: int) -> npt.NDArray[np.unsignedinteger]:
        """Take the last `tokens` tokens off the last shard, or half of that shard if it holds fewer than twice that."""
        path = self.shards[-1]
        held = path.stat().st_size // self.dtype.itemsize
        kept = (held - min(tokens, held // 2)) * self.dtype.itemsize
        tail: npt.NDArray[np.unsignedinteger] = np.fromfile(path, self.dtype, offset=kept)
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
