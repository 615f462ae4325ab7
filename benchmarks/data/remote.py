"""A dataset in an object store, from nothing here to the first batch: read where it is wanted, or copied whole.

`python benchmarks/data/remote.py [MB] [CACHE_MB]` puts random tokens into an S3 server of this machine (moto's, in a
process of its own), opens the dataset by its URL with an empty cache, and prints the seconds to the first batch of 8
sequences of 1,024, those of the copy that `dataset.json` without digests asks for, the time of each further batch with
eight read ahead, and the most bytes that the cache has held.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
import torch

from teragpt.data import open_dataset
from teragpt.datasets.batches import Batches
from teragpt.datasets.files import MANIFEST, TRAIN, File, Split, read_manifest
from teragpt.datasets.shards import write_digests
from teragpt.prepare.assembly import write
from teragpt.prepare.documents import Document, Recipe
from teragpt.tokenization.tokenizer import train_bpe

SHARD = 1 << 26  # bytes
STEPS, SEQUENCES, CONTEXT = 60, 8, 1024
SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


def make(folder: Path, megabytes: int) -> None:
    """A dataset whose training split is so many MB of random tokens."""
    texts = [f"line {number} of {number % 7}\n" for number in range(2000)]
    tokenizer = train_bpe(texts, 300)
    write((Document((text,)) for text in texts), folder, tokenizer, Recipe(validation=0.1))
    manifest, draw = read_manifest(folder), np.random.default_rng(0)
    files: list[File] = []
    for start in range(0, megabytes * 1_000_000, SHARD):
        path = folder / f"train-{len(files):05d}.bin"
        size = min(SHARD, megabytes * 1_000_000 - start)
        draw.integers(0, tokenizer.vocabulary, size // 2, np.uint16).tofile(path)
        files.append(File.of(folder, path))
    train = Split(1, sum(file.size for file in files) // 2, tuple(files))
    splits = {**manifest.splits, TRAIN: train}
    shards = (shard for split in splits.values() for shard in split.shards)
    dataclasses.replace(manifest, splits=splits, blocks=write_digests(folder, shards)).write(folder)


def first_batch(url: str) -> tuple[float, Batches]:
    """Seconds from nothing to the first batch."""
    began = time.perf_counter()
    dataset = open_dataset(url)
    batches = Batches(lambda step: dataset.batch(step, SEQUENCES, CONTEXT, 0, 0, 1), torch.device("cpu"))
    batches.take(0)
    return time.perf_counter() - began, batches


def held(cache: Path) -> int:
    """Bytes that a cache holds."""
    return sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())


def main(megabytes: int, cache_megabytes: int) -> None:
    """Measure, and print."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as server,
    ):
        assert server.stdout is not None
        host, port = server.stdout.readline().split()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        folder = Path(scratch, "dataset")
        make(folder, megabytes)
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        store.put(str(folder), "bucket/new", recursive=True)
        store.put(str(folder), "bucket/old", recursive=True)
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest["blocks"]
        store.pipe_file(f"bucket/old/{MANIFEST}", json.dumps(manifest).encode())
        os.environ |= {"TERAGPT_CACHE": f"{scratch}/old"}
        whole, _ = first_batch("s3://bucket/old")
        os.environ |= {"TERAGPT_CACHE": f"{scratch}/new", "TERAGPT_CACHE_BYTES": str(cache_megabytes * 1_000_000)}
        first, batches = first_batch("s3://bucket/new")
        print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores")
        print(f"{megabytes} MB of tokens, cache of {cache_megabytes} MB")
        print(
            f"first batch: {first:.2f} s read where it is wanted, {whole:.2f} s copied whole ({whole / first:.1f} x)",
            flush=True,
        )
        most, began = 0, time.perf_counter()
        for step in range(1, STEPS):
            batches.prepare(step, STEPS - step)
            batches.take(step)
            if step % 10 == 0:
                most = max(most, held(Path(scratch, "new")))
        each = (time.perf_counter() - began) / (STEPS - 1)
        server.stdin.close() if server.stdin else None
        server.terminate()
    print(f"each further batch of {SEQUENCES} x {CONTEXT}: {each * 1e3:.1f} ms, {STEPS} in all")
    print(f"most that the cache held: {most / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["200", "50"][len(sys.argv) - 1 :])))
