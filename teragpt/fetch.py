"""A dataset in an object store, copied once to each node that trains on it.

Why: training reads windows in any order, so a shard must lie where it can be mapped. Must not know what is in one.
"""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from teragpt.dataset_files import MANIFEST, File, Manifest, fail, load_manifest
from teragpt.shards import verify
from teragpt.storage import Bucket, Disk, cache_folder, folder_at, locked

AT_ONCE = 8  # files; one stream from a store is slow


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
        with locked(copy.with_suffix(".lock")):
            if not (copy / MANIFEST).is_file():
                download(source, manifest, copy)
                Disk(copy).write(MANIFEST, text)
    except OSError as error:
        raise fail("TERAGPT_CACHE", copy, f"a folder that can be written ({reason(error)})") from None
    return copy


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
