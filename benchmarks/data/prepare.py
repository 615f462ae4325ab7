"""Text to tokens: `teragpt prepare` beside the tokenizer library, tiktoken over a pool, and nanoGPT's `prepare.py`.

The library reads nothing and writes nothing: the text is in memory, and its tokens are dropped. tiktoken is given the
same vocabulary, and documents from memory; nanoGPT's way reads the same file as we do by `datasets` (`pip install
datasets`, left out where that is not), maps tiktoken over its documents, and writes one file. Each arm has all cores.
`python benchmarks/data/prepare.py [MB] [VOCABULARY]` prints MB/s of each and the ratios (wanted: 0.9, and 1.0 twice),
by the clock and by the seconds of processor that each took, which other work on the machine changes less.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiktoken
from tokenizers import Tokenizer as Rules
from tokenizers import pre_tokenizers

from teragpt.datasets.embedded import library
from teragpt.prepare import prepare
from teragpt.prepare.corpus import read_library
from teragpt.prepare.documents import Recipe
from teragpt.tokenization.pieces import PROSE_PIECES
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe

CORES = len(os.sched_getaffinity(0))
BATCH = 64  # documents
FILES = 1024  # parts in which nanoGPT writes its one file
OURS, ALONE, POOL, NANOGPT = "teragpt prepare", "tokenizers alone", "tiktoken over a pool", "datasets, nanoGPT's way"
WANTED = {ALONE: 0.9, POOL: 1.0, NANOGPT: 1.0}
state: dict[str, tiktoken.Encoding] = {}


class Took(NamedTuple):
    """Seconds by the clock, seconds of processor in this process and its ended children, and the tokens made."""

    clock: float
    processor: float
    tokens: int


def texts(megabytes: int) -> list[str]:
    """Different documents of so many MB in all: the standard library's modules, each time with other names."""
    modules = ["".join(one.parts) for one in read_library(library())]
    made: list[str] = []
    size = 0
    while size < megabytes * 1_000_000:
        text = modules[len(made) % len(modules)].replace("self", f"me{len(made) // len(modules)}")
        made.append(text)
        size += len(text.encode())
    return made


def ranks(tokenizer: str) -> dict[bytes, int]:
    """The vocabulary of a byte-level BPE by bytes, as tiktoken takes it: a merge's rank is its token's id."""
    rules = json.loads(Path(tokenizer, "tokenizer.json").read_text("utf-8"))
    letters = byte_letters()
    special = {one["content"] for one in rules["added_tokens"]}
    return {bytes(letters[c] for c in word): at for word, at in rules["model"]["vocab"].items() if word not in special}


def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte (Radford et al. 2019): its own where it has one, else one from 256 on."""
    own = [at for at in range(256) if chr(at) in set(pre_tokenizers.ByteLevel.alphabet())]
    other = [at for at in range(256) if at not in own]
    return {chr(at): at for at in own} | {chr(256 + place): at for place, at in enumerate(other)}


def encoding(tokenizer: str) -> tiktoken.Encoding:
    """The vocabulary as tiktoken's."""
    pieces = "|".join(PROSE_PIECES)
    return tiktoken.Encoding("same", pat_str=pieces, mergeable_ranks=ranks(tokenizer), special_tokens={})


def start(tokenizer: str) -> None:
    """Open the vocabulary in a process of the pool."""
    state["tiktoken"] = encoding(tokenizer)


def encode(text: str) -> list[int]:
    """One document, in a process of the pool."""
    return state["tiktoken"].encode_ordinary(text)


def with_tiktoken(documents: list[str], tokenizer: str, out: Path) -> int:
    """Map over processes, then write one file; returns its tokens."""
    with ProcessPoolExecutor(CORES, get_context("spawn"), start, (tokenizer,)) as pool:
        found = list(pool.map(encode, documents, chunksize=BATCH))
    flat = np.memmap(out, np.uint16, "w+", shape=(sum(map(len, found)),))
    at = 0
    for ids in found:
        flat[at : at + len(ids)] = ids
        at += len(ids)
    flat.flush()
    return at


def with_datasets(source: Path, tokenizer: Tokenizer, folder: Path) -> int:
    """The steps of nanoGPT's `data/openwebtext/prepare.py`, on a file of ours; returns its tokens, separators apart."""
    datasets = import_module("datasets")
    theirs, end = encoding(str(folder / "tokenizer")), tokenizer.end

    def process(example: dict[str, str]) -> dict[str, Any]:
        ids = [*theirs.encode_ordinary(example["text"]), end]
        return {"ids": ids, "len": len(ids)}

    loaded = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(folder / "cache"))
    mapped = loaded.map(process, remove_columns=["text"], num_proc=CORES)
    flat = np.memmap(folder / "theirs.bin", np.uint16, "w+", shape=(int(np.sum(mapped["len"], dtype=np.uint64)),))
    at, files = 0, min(FILES, len(mapped))
    for index in range(files):
        part = mapped.shard(num_shards=files, index=index, contiguous=True).with_format("numpy")
        ids = np.concatenate(part["ids"])
        flat[at : at + len(ids)] = ids
        at += len(ids)
    flat.flush()
    return at - len(mapped)


def alone(documents: list[str], tokenizer: str) -> int:
    """The library on all cores; returns its tokens."""
    rules = Rules.from_file(f"{tokenizer}/tokenizer.json")
    batches = (documents[at : at + BATCH] for at in range(0, len(documents), BATCH))
    return sum(len(one.ids) for batch in batches for one in rules.encode_batch_fast(batch, add_special_tokens=False))


def measure(what: Callable[[], int]) -> Took:
    """Run it."""
    begin, used = time.perf_counter(), processor()
    tokens = what()
    return Took(time.perf_counter() - begin, processor() - used, tokens)


def processor() -> float:
    """Seconds of processor so far."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def main(megabytes: int, vocabulary: int) -> None:
    """Measure each, ours before and after the others, and print the ratios."""
    documents = texts(megabytes)
    size = sum(len(text.encode()) for text in documents) / 1e6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_bpe(documents[:400], vocabulary, PROSE_PIECES).save(folder / "tokenizer")
        tokenizer = Tokenizer(str(folder / "tokenizer"))
        source = folder / "texts.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")

        def ours(out: str) -> int:
            made = prepare([source], folder / out, tokenizer, Recipe(validation=0), workers=CORES, progress=False)
            return made.splits["train"].tokens - len(documents)  # separators

        took = {
            OURS: [measure(lambda: ours("one"))],
            ALONE: [measure(lambda: alone(documents, f"{name}/tokenizer"))],
            POOL: [measure(lambda: with_tiktoken(documents, f"{name}/tokenizer", folder / "x.bin"))],
        }
        if find_spec("datasets"):
            import_module("datasets").disable_progress_bars()  # its import is left out, as ours is
            took[NANOGPT] = [measure(lambda: with_datasets(source, tokenizer, folder))]
        took[OURS].append(measure(lambda: ours("two")))
    tell(took, size)


def tell(took: dict[str, list[Took]], size: float) -> None:
    """Print what each arm took for `size` MB of text, and the ratios. Raises AssertionError where tokens differ."""
    assert len({one.tokens for runs in took.values() for one in runs}) == 1, took
    print(f"{size:.0f} MB, {took[OURS][0].tokens:,} tokens by each, {CORES} cores, {platform.machine()}")
    clock, used = (
        {what: size * len(runs) / sum(one[at] for one in runs) for what, runs in took.items()} for at in (0, 1)
    )
    for what, runs in took.items():
        seconds = ", ".join(f"{one.clock:.2f} s ({one.processor:.2f} of processor)" for one in runs)
        print(f"{what}: {clock[what]:.2f} MB/s, {used[what]:.2f} MB a second of processor; {seconds}")
    for rival, wanted in WANTED.items():
        if rival in took:
            times, spent = (rate[OURS] / rate[rival] for rate in (clock, used))
            print(f"against {rival}: {times:.2f} by the clock, {spent:.2f} by the processor (wanted: {wanted})")
        else:
            print(f"against {rival}: not measured, `pip install datasets`")


if __name__ == "__main__":
    main(*(int(one) for one in (*sys.argv[1:], *("20", "32768")[len(sys.argv) - 1 :])))
