"""A dataset wherever it lies: on a disk of this machine, or in an object store, from which its head comes first.

Why: of a dataset in a store the tokenizer and the blocks' digests are copied when it is opened, and blocks of shards
when they are wanted. One made before there were digests, and one on a server that gives objects only whole, is copied
whole. Must not know in which order tokens are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from teragpt.datasets.blocks import WAITS, RemoteShard, patiently, reason
from teragpt.datasets.files import DIGEST_BYTES, MANIFEST, Blocks, File, Manifest, fail, load_manifest, read_manifest
from teragpt.datasets.room import LIMIT, NoRoom, claimed, copies, held_by, hold, limit
from teragpt.datasets.shards import MappedShard, Shard, numpy_type, verify
from teragpt.storage import Bucket, Disk, cache_folder, folder_at, locked

AT_ONCE = 8  # files; one stream from a store is slow
SOON = WAITS[:3]  # who has just started something waits for it


@dataclass(frozen=True)
class Files:
    """A dataset's files: its `folder` on this machine holds at least its head; `shard` opens one of its shards."""

    folder: Path
    manifest: Manifest
    shard: Callable[[File], Shard]


def open_files(place: str | Path) -> Files:
    """The dataset at a path or URL, compared with its checksums. Raises ConfigError, and ConnectionError of a store."""
    source = folder_at(place, "data")
    if not isinstance(source, Bucket):
        folder, manifest = Path(place), read_manifest(Path(place))
        verify(folder, manifest)
        return mapped(folder, manifest)
    text = patiently(f"{source}/{MANIFEST}", lambda: source.read(MANIFEST), SOON)
    manifest = load_manifest(text, f"{source}/{MANIFEST}")
    blocks = manifest.blocks if manifest.blocks and gives_parts(source, manifest.blocks) else None
    try:
        copy = copied(source, text, manifest, manifest.head if blocks else manifest.files)
    except NoRoom as error:
        allowed = (
            f"a folder with room for what is read of {source} beside the datasets that are in use ({reason(error)})"
        )
        raise fail(LIMIT if limit() else "TERAGPT_CACHE", limit() or cache_folder(), allowed) from None
    except ConnectionError:
        raise
    except OSError as error:
        raise fail("TERAGPT_CACHE", cache_folder(), f"a folder that can be written ({reason(error)})") from None
    return remote(source, copy, manifest, blocks) if blocks else mapped(copy, manifest)


def mapped(folder: Path, manifest: Manifest) -> Files:
    """A dataset that lies whole in a folder."""
    dtype = numpy_type(manifest.dtype)
    return Files(folder, manifest, lambda file: MappedShard(folder / file.name, dtype))


def remote(source: Bucket, copy: Path, manifest: Manifest, blocks: Blocks) -> Files:
    """A dataset whose head lies in a folder, and its shards in a store."""
    dtype, digests, starts, start = numpy_type(manifest.dtype), (copy / blocks.digests.name).read_bytes(), {}, 0
    for file in manifest.shards:
        starts[file.name] = start
        start += blocks.of(file) * DIGEST_BYTES

    def shard(file: File) -> Shard:
        mine = digests[starts[file.name] : starts[file.name] + blocks.of(file) * DIGEST_BYTES]
        return RemoteShard(source, file, mine, blocks.size, copy, dtype)

    return Files(copy, manifest, shard)


def gives_parts(source: Bucket, blocks: Blocks) -> bool:
    """Whether a store gives a part of an object, as not every HTTP server does."""
    name = blocks.digests.name
    part = patiently(f"{source}/{name}", lambda: source.read_part(name, 0, DIGEST_BYTES // 2), SOON)
    return len(part) == DIGEST_BYTES // 2


def copied(source: Bucket, text: bytes, manifest: Manifest, files: Sequence[File]) -> Path:
    """The folder on this machine into which some files of a dataset have been copied, each whole and right.

    Any number of ranks may ask at once: one of a node copies, the others wait. `dataset.json` comes last and says that
    it is done; what was broken off goes on file by file. Raises ConfigError, ConnectionError, OSError.
    """
    part = "" if len(files) == len(manifest.files) else "-head"
    copy = copies() / f"{hashlib.sha256(text).hexdigest()[:16]}{part}"
    hold(copy)
    with locked(copy.with_suffix(".lock")):
        if not (copy / MANIFEST).is_file():
            size = len(text) + sum(file.size for file in files)
            copy.mkdir(exist_ok=True)
            with claimed(copy.parent, copy.with_name(f".{copy.name}.part"), max(0, size - held_by(copy))):
                download(source, files, copy)
            try:
                verify(copy, manifest, files)
            except Exception:
                shutil.rmtree(copy)  # so that the next try copies it anew
                raise
            Disk(copy).write(MANIFEST, text)
    return copy


def download(source: Bucket, files: Sequence[File], copy: Path) -> None:
    """Copy files of a dataset. Raises ConfigError, ConnectionError, OSError."""

    def fetch(file: File) -> int:
        target = copy / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.stat().st_size != file.size:
            patiently(f"{source}/{file.name}", lambda: source.download(file.name, target), SOON)
            with target.open("rb") as written:
                os.fsync(written.fileno())
        return file.size

    total = sum(file.size for file in files)
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc=f"copy {source}", disable=None) as bar,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        for size in pool.map(fetch, files):
            bar.update(size)
