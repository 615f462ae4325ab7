"""The tokens of a step: which windows of which dataset, as a pure function of (dataset, seed, step).

Why: nothing about the data's order is stored, so a resumed run, or one on another number of ranks, sees the same
tokens in the same order. It must not know how shards are made, nor what a model does with tokens. Legend: B sequences
of a global batch, T tokens of a sequence (`context`), n sequences of one rank.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from teragpt.config import ConfigError, Problem
from teragpt.datasets.fetch import Files, open_files
from teragpt.datasets.files import TOKENIZER_FOLDER, TRAIN, VALIDATION, fail
from teragpt.datasets.mixture import Schedule
from teragpt.datasets.portions import Portion, parse_mixture, whole
from teragpt.datasets.shards import Ids, Shard
from teragpt.prepare.corpus import embedded_dataset
from teragpt.tokenization.tokenizer import Tokenizer

Batch = tuple[torch.Tensor, torch.Tensor]
Places = npt.NDArray[np.int64]
ROUNDS = 6


class Dataset(Protocol):
    """What the trainer asks of a dataset. Your own: name a function like `open_dataset` as `--loader module:function`.

    It is called as `function(path, tokenizer=name)` with the settings `data` and `tokenizer`, and returns this.
    """

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the data: a run goes on only with the data that it began with."""
        ...

    @property
    def tokenizer_fingerprint(self) -> str:
        """Names the tokenizer that made the data."""
        ...

    @property
    def tokenizer(self) -> str:
        """What `Tokenizer(...)` opens to read the data, "" if there is none."""
        ...

    def tokens(self, split: str) -> int:
        """Tokens of the split `train` or `validation`."""
        ...

    def batch(self, step: int, sequences: int, context: int, seed: int, rank: int, world_size: int) -> Batch:
        """This rank's (ids, targets) of a step's `sequences` sequences: int64, each (n, T).

        The global batch depends on (dataset, seed, step, sequences, context) alone; a rank's part of it is the slice
        `[rank * B // world_size : (rank + 1) * B // world_size]`. Raises ConfigError if the split is too short.
        """
        ...

    def validation(self, sequences: int, context: int, rank: int, world_size: int) -> Batch:
        """This rank's slice of `sequences` held-out sequences, the same ones at every call."""
        ...


def open_dataset(path: str, *, tokenizer: str = "") -> ShardedDataset | MixedDataset:
    """The dataset in the folder or at the URL `path`, or a mixture of several; "": the embedded one, made at first.

    Raises ConfigError if one is missing, broken (sizes are checked always, content once), or made by another tokenizer
    than the given one, and if a mixture's have been made by several.
    """
    portions = parse_mixture(path)
    if not portions:
        return open_folder(path, tokenizer)
    return MixedDataset(portions, [open_folder(one.place, tokenizer) for one in portions])


def open_folder(path: str, tokenizer: str) -> ShardedDataset:
    """One dataset. Raises ConfigError."""
    files = open_files(path or embedded_dataset())
    if tokenizer and Tokenizer(tokenizer).fingerprint != files.manifest.tokenizer_fingerprint:
        made = files.folder / TOKENIZER_FOLDER
        raise fail("tokenizer", tokenizer, f"the tokenizer that {path or files.folder} was made with, which is {made}")
    return ShardedDataset(files)


class ShardedDataset:
    """Token shards, mapped or read from a store. A split's tokens lie one after the other over its shards."""

    def __init__(self, files: Files) -> None:
        self.folder, self.manifest = files.folder, files.manifest
        self.splits = {
            name: Tokens([files.shard(one) for one in split.shards]) for name, split in files.manifest.splits.items()
        }
        self._held_out = lru_cache(maxsize=1)(self.held_out)  # of every evaluation of a run

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self.manifest.vocabulary

    @property
    def fingerprint(self) -> str:
        """Names the data."""
        return self.manifest.fingerprint

    @property
    def tokenizer_fingerprint(self) -> str:
        """Names the tokenizer that made the data."""
        return self.manifest.tokenizer_fingerprint

    @property
    def tokenizer(self) -> str:
        """The folder of the tokenizer that made the data."""
        return str(self.folder / TOKENIZER_FOLDER)

    @property
    def end(self) -> int:
        """The separator's id."""
        return self.manifest.end

    @property
    def unigram_entropy(self) -> float:
        """Nats a token costs who knows only how frequent each one is in the training split."""
        return self.manifest.unigram_entropy

    def tokens(self, split: str) -> int:
        """Tokens of the split `train` or `validation`."""
        return len(self.splits[split])

    def batch(self, step: int, sequences: int, context: int, seed: int, rank: int, world_size: int) -> Batch:
        """This rank's (ids, targets) of a step, each (n, T): every window once an epoch, in a new order each epoch.

        Windows are the split cut into pieces of T tokens; sequence g of the run is window `order(g % windows)` of
        epoch `g // windows`. Raises ConfigError if the split holds no window.
        """
        return self.sequences(step * sequences + share(sequences, rank, world_size), context, seed)

    def sequences(self, numbers: Places, context: int, seed: int) -> Batch:
        """The run's sequences of these numbers, from 0. Raises ConfigError if the split holds no window."""
        windows = self.windows(TRAIN, context)
        epochs, places = np.divmod(numbers, windows)
        chosen = np.empty_like(places)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            chosen[inside] = shuffled(places[inside], windows, f"{seed}/{epoch}")
        return self._read(TRAIN, chosen, context)

    def validation(self, sequences: int, context: int, rank: int, world_size: int) -> Batch:
        """This rank's slice of `sequences` held-out windows; where there are fewer, they come again from the first.

        Raises ConfigError if the split holds no window.
        """
        first, last = (one * sequences // world_size for one in (rank, rank + 1))
        return self._held_out(range(first, last), context)

    def held_out(self, numbers: Places | range, context: int) -> Batch:
        """The held-out sequences of these numbers, from 0. Raises ConfigError if the split holds no window."""
        windows = self.windows(VALIDATION, context)
        places = np.asarray(numbers, np.int64) % windows
        return self._read(VALIDATION, shuffled(places, windows, VALIDATION), context)

    def windows(self, split: str, context: int) -> int:
        """Windows of a split. Raises ConfigError if it holds none."""
        held = self.tokens(split)
        if not held:
            allowed = (
                f"a dataset with a document in its {split} split, which --validation of `teragpt prepare` holds out"
            )
            raise fail("data", self.folder, allowed)
        if context >= held:
            where = f"the {split} split of {self.folder} holds {held:,} tokens"
            raise ConfigError([Problem("context", context, f"at most {max(0, held - 1)} ({where})")])
        return (held - 1) // context

    def _read(self, split: str, windows: npt.NDArray[np.int64], context: int) -> Batch:
        rows = np.empty((len(windows), context + 1), np.int64)
        self.splits[split].read(windows * context, rows)
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())


class MixedDataset:
    """Several datasets of one tokenizer, from which a run's sequences come in the proportions of a mixture."""

    def __init__(self, portions: Sequence[Portion], datasets: Sequence[ShardedDataset]) -> None:
        self.portions, self.datasets = portions, datasets
        for portion, dataset in zip(portions, datasets, strict=True):
            if dataset.tokenizer_fingerprint != datasets[0].tokenizer_fingerprint:
                raise fail("data", portion.place, f"a dataset of the same tokenizer as {portions[0].place}")
        self._schedule = lru_cache(maxsize=4)(self._scheduled)

    @property
    def sources(self) -> dict[str, ShardedDataset]:
        """The datasets by name, whose held-out losses are told apart: a folder's name, or its place if two share it."""
        names = [Path(one.place).name for one in self.portions]
        each = names if len(set(names)) == len(names) else [one.place for one in self.portions]
        return dict(zip(each, self.datasets, strict=True))

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self.datasets[0].vocabulary

    @property
    def fingerprint(self) -> str:
        """Names the data: the datasets, their weights and caps."""
        parts = [
            (dataset.fingerprint, str(portion.weight), portion.epochs)
            for portion, dataset in zip(self.portions, self.datasets, strict=True)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def tokenizer_fingerprint(self) -> str:
        """Names the tokenizer that made the data."""
        return self.datasets[0].tokenizer_fingerprint

    @property
    def tokenizer(self) -> str:
        """The folder of the tokenizer that made the data."""
        return self.datasets[0].tokenizer

    @property
    def end(self) -> int:
        """The separator's id."""
        return self.datasets[0].end

    def tokens(self, split: str) -> int:
        """Tokens of a split in all."""
        return sum(dataset.tokens(split) for dataset in self.datasets)

    def batch(self, step: int, sequences: int, context: int, seed: int, rank: int, world_size: int) -> Batch:
        """This rank's (ids, targets) of a step, each (n, T); of any number of sequences each source gives its part.

        Raises ConfigError if a split holds no window, and when every source has been read as often as it may be.
        """
        schedule = self._schedule(context)
        places = step * sequences + share(sequences, rank, world_size)
        if schedule.end is not None and len(places) and places[-1] >= schedule.end:
            said = f"epochs that are enough: all is read through after {schedule.end:,} sequences of {context} tokens"
            raise fail("data", ",".join(one.place for one in self.portions), said)
        source, number = schedule.take(places)
        return self._gather(source, context, lambda at, mine: self.datasets[at].sequences(number[mine], context, seed))

    def validation(self, sequences: int, context: int, rank: int, world_size: int) -> Batch:
        """This rank's slice of `sequences` held-out windows in the mixture's proportions."""
        schedule = Schedule(whole(self.portions), [0] * len(self.portions))
        source, number = schedule.take(share(sequences, rank, world_size))
        return self._gather(source, context, lambda at, mine: self.datasets[at].held_out(number[mine], context))

    def _scheduled(self, context: int) -> Schedule:
        limits = [
            portion.epochs * dataset.windows(TRAIN, context)
            for portion, dataset in zip(self.portions, self.datasets, strict=True)
        ]
        return Schedule(whole(self.portions), limits)

    def _gather(self, source: Places, context: int, read: Callable[[int, npt.NDArray[np.bool_]], Batch]) -> Batch:
        ids, targets = (torch.empty(len(source), context, dtype=torch.int64) for _ in range(2))
        for at in range(len(self.datasets)):
            mine = source == at
            chosen = torch.from_numpy(mine)
            ids[chosen], targets[chosen] = read(at, mine)
        return ids, targets


class Tokens:
    """One split's tokens as one sequence over its shards."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards, self.starts = shards, [0, *accumulate(map(len, shards))]

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, starts: Places, rows: npt.NDArray[np.int64]) -> None:
        """Fill each row with the tokens from its start on; all are asked for before any is waited for."""
        asked = [
            (piece, arrived) for start, row in zip(starts, rows, strict=True) for piece, arrived in self.ask(start, row)
        ]
        for piece, arrived in asked:
            piece[:] = arrived()

    def ask(self, start: int, row: Places) -> list[tuple[Places, Callable[[], Ids]]]:
        """The pieces of a row, each with what waits for its tokens."""
        pieces: list[tuple[Places, Callable[[], Ids]]] = []
        done, number = 0, bisect.bisect_right(self.starts, start) - 1
        while done < len(row):
            first = int(start) + done - self.starts[number]
            last = min(first + len(row) - done, len(self.shards[number]))
            pieces.append((row[done : done + last - first], self.shards[number].ask(first, last)))
            done, number = done + last - first, number + 1
        return pieces


def share(sequences: int, rank: int, world_size: int) -> npt.NDArray[np.int64]:
    """The positions in a global batch that a rank takes."""
    return np.arange(rank * sequences // world_size, (rank + 1) * sequences // world_size)


def shuffled(places: npt.NDArray[np.int64], size: int, key: str) -> npt.NDArray[np.int64]:
    """Where a shuffle of range(size), chosen by `key`, puts `places`; a bijection computed in constant memory.

    A Feistel network permutes the least power of four that is not below `size`; what falls outside is sent through
    it again until it falls inside (cycle walking: Black and Rogaway 2002), which takes less than four turns a place
    on average.
    """
    assert ((places >= 0) & (places < size)).all()  # only from inside does a walk always come back inside
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    found = feistel(places.astype(np.uint64), half, round_keys(key))
    while (outside := found >= size).any():
        found[outside] = feistel(found[outside], half, round_keys(key))
    return found.astype(np.int64)


def feistel(values: npt.NDArray[np.uint64], half: np.uint64, keys: tuple[np.uint64, ...]) -> npt.NDArray[np.uint64]:
    """Permute numbers of two halves of `half` bits each."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (mixed(right ^ key) & mask)
    return (left << half) | right


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Numbers whose every bit depends on all bits of the given ones (the finalizer of Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=64)
def round_keys(key: str) -> tuple[np.uint64, ...]:
    """The keys of the rounds."""
    digest = hashlib.sha512(key.encode()).digest()
    return tuple(np.uint64(int.from_bytes(digest[8 * i : 8 * i + 8], "big")) for i in range(ROUNDS))
