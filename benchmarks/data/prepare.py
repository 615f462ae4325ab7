"""Text to tokens: `teragpt prepare` against the tokenizer library alone, and against tiktoken over a pool of processes.

The library reads nothing and writes nothing: the text is in memory, and its tokens are dropped. tiktoken is given the
same vocabulary and does what nanoGPT's `prepare.py` does, a document at a time over all cores and then one file.
`python benchmarks/data/prepare.py [MB] [VOCABULARY]` prints MB/s of each and the two ratios (wanted: 0.9 and 1.0),
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
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiktoken
from tokenizers import Tokenizer as Rules
from tokenizers import pre_tokenizers

from teragpt.corpus import read_library
from teragpt.embedded import library
from teragpt.prepare import prepare
from teragpt.prepare.documents import Recipe
from teragpt.tokenizer import Tokenizer, train_bpe
from teragpt.tokenizer_pieces import PROSE_PIECES

CORES = len(os.sched_getaffinity(0))
BATCH = 64  # documents
THEIRS = "tiktoken, nanoGPT's way"
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


def start(tokenizer: str) -> None:
    """Open the vocabulary in a process of the pool."""
    state["tiktoken"] = tiktoken.Encoding(
        "same", pat_str="|".join(PROSE_PIECES), mergeable_ranks=ranks(tokenizer), special_tokens={}
    )


def encode(text: str) -> list[int]:
    """One document, in a process of the pool."""
    return state["tiktoken"].encode_ordinary(text)


def with_tiktoken(documents: list[str], tokenizer: str, out: Path) -> int:
    """nanoGPT's way: map over processes, then write one file; returns its tokens."""
    with ProcessPoolExecutor(CORES, get_context("spawn"), start, (tokenizer,)) as pool:
        found = list(pool.map(encode, documents, chunksize=BATCH))
    flat = np.memmap(out, np.uint16, "w+", shape=(sum(map(len, found)),))
    at = 0
    for ids in found:
        flat[at : at + len(ids)] = ids
        at += len(ids)
    flat.flush()
    return at


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
    """Measure the three, ours twice around the others, and print the ratios."""
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
            "teragpt prepare": [measure(lambda: ours("one"))],
            "tokenizers alone": [measure(lambda: alone(documents, f"{name}/tokenizer"))],
            THEIRS: [measure(lambda: with_tiktoken(documents, name + "/tokenizer", folder / "x.bin"))],
        }
        took["teragpt prepare"].append(measure(lambda: ours("two")))
    machine = f"{CORES} cores, {platform.machine()}"
    print(f"{size:.0f} MB, {len(documents):,} documents, {vocabulary:,} tokens, {machine}")
    clock, used = (
        {what: size * len(runs) / sum(one[at] for one in runs) for what, runs in took.items()} for at in (0, 1)
    )
    for what, runs in took.items():
        print(f"{what}: {clock[what]:.2f} MB/s, {used[what]:.2f} MB a second of processor, {runs[0].tokens:,} tokens")
    for rival, wanted in (("tokenizers alone", 0.9), (THEIRS, 1.0)):
        by_clock, by_processor = (rate["teragpt prepare"] / rate[rival] for rate in (clock, used))
        print(f"against {rival}: {by_clock:.2f} by the clock, {by_processor:.2f} by the processor (wanted: {wanted})")


if __name__ == "__main__":
    main(*(int(one) for one in (*sys.argv[1:], *("20", "32768")[len(sys.argv) - 1 :])))
