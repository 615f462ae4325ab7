"""A dataset in an object store, copied once to each node that trains on it.

Why: training reads windows in any order, so a shard must lie where it can be mapped. What nobody reads any more goes
when another needs its room, the one longest unused first. Must not know what is in a shard.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from teragpt.dataset_files import MANIFEST, File, Manifest, fail, load_manifest
from teragpt.shards import verify
from teragpt.storage import Bucket, Disk, cache_folder, folder_at, locked

AT_ONCE = 8  # files; one stream from a store is slow
LIMIT = "TERAGPT_CACHE_BYTES"
held: dict[Path, int] = {}  # open locks of the copies that this process reads, until it ends


def on_this_node(place: str) -> Path:
    """The folder of the dataset at a path or URL; from a store it is copied to the cache folder on first use.

    Any number of ranks may ask at once: one of a node copies, the others wait. A copy counts once it is whole and its
    checksums are right; one that was broken off goes on file by file. Raises ConfigError.
    """
    source = folder_at(place, "data")
    if not isinstance(source, Bucket):
        return Path(place)
    try:
        text = source.read(MANIFEST)
    except OSError as error:
        raise fail("data", place, f"a dataset made by `teragpt prepare` ({MANIFEST}: {reason(error)})") from None
    manifest = load_manifest(text, f"{source}/{MANIFEST}")
    copy = cache_folder() / "datasets" / hashlib.sha256(text).hexdigest()[:16]
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        hold(copy)
        with locked(copy.with_suffix(".lock")):
            if not (copy / MANIFEST).is_file():
                make_room(copy, sum(file.size for file in manifest.files))
                download(source, manifest, copy)
                Disk(copy).write(MANIFEST, text)
    except OSError as error:
        raise fail("TERAGPT_CACHE", copy, f"a folder that can be written ({reason(error)})") from None
    return copy


def hold(copy: Path) -> None:
    """Keep a copy from being removed until this process ends, and note that it was wanted now. Raises OSError."""
    if copy not in held:
        held[copy] = os.open(copy.with_suffix(".used"), os.O_CREAT | os.O_RDWR, 0o666)
        fcntl.flock(held[copy], fcntl.LOCK_SH)
    os.utime(copy.with_suffix(".used"))


def make_room(copy: Path, size: int) -> None:
    """Remove copies that nobody reads, the one longest unused first, until `copy` may take `size` bytes.

    As many fit as the disk has free, and in all as many as TERAGPT_CACHE_BYTES says. Raises ConfigError, OSError.
    """
    most = limit()

    def fits() -> bool:
        missing = size - held_by(copy)
        return missing <= shutil.disk_usage(copy.parent).free and (not most or held_by(copy.parent) + missing <= most)

    others = [path for path in copy.parent.iterdir() if path.is_dir() and path != copy]
    for other in sorted(others, key=last_wanted):
        if fits():
            return
        try:
            with locked(other.with_suffix(".used"), wait=False):
                (other / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(other)
        except BlockingIOError:
            continue  # it is being read
    if not fits():
        where = f"a folder with room for {size:,} bytes beside the datasets that are in use"
        raise fail(LIMIT if most else "TERAGPT_CACHE", most or copy.parent, where)


def last_wanted(copy: Path) -> float:
    """When a copy was opened last; 0 where nothing tells."""
    try:
        return copy.with_suffix(".used").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def limit() -> int:
    """The bytes that copies may take in all; 0: what the disk holds. Raises ConfigError."""
    given = os.environ.get(LIMIT, "") or "0"
    if not given.isdecimal():
        raise fail(LIMIT, given, "a number of bytes")
    return int(given)


def held_by(folder: Path) -> int:
    """The bytes of all files in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def download(source: Bucket, manifest: Manifest, copy: Path) -> None:
    """Copy the files of a dataset, and compare them with their checksums. Raises ConfigError, OSError."""

    def fetch(file: File) -> int:
        target = copy / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.stat().st_size != file.size:
            try:
                source.download(file.name, target)
            except OSError as error:
                allowed = f"a file that can be copied to {target} ({reason(error)})"
                raise fail("data", f"{source}/{file.name}", allowed) from None
        return file.size

    total = sum(file.size for file in manifest.files)
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc=f"copy {source}", disable=None) as bar,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        for size in pool.map(fetch, manifest.files):
            bar.update(size)
    try:
        verify(copy, manifest)
    except Exception:
        shutil.rmtree(copy)  # so that the next try copies it anew
        raise


def reason(error: OSError) -> str:
    """What went wrong, in words."""
    return error.strerror or str(error)
