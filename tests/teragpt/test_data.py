from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teragpt.config import ConfigError
from teragpt.data import Batch, Dataset, ShardedDataset, mixed, open_dataset, round_keys, share, shuffled
from teragpt.datasets.fetch import mapped
from teragpt.datasets.files import MANIFEST, parse_manifest, read_manifest
from teragpt.prepare.assembly import write
from teragpt.prepare.documents import Document, Recipe
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe

TEXTS = ["def value():\n    return value\n", "class Value:\n    pass\n"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS * 10, 280)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TERAGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(folder: Path, tokenizer: Tokenizer, shard_tokens: int = 500) -> Path:
    draw = random.Random(1)
    documents = [Document(("".join(draw.choices(TEXTS, k=draw.randint(1, 5))),)) for _ in range(200)]
    write(documents, folder, tokenizer, Recipe(validation=0.2, shard_tokens=shard_tokens))
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return make(tmp_path / "dataset", tokenizer)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> ShardedDataset:
    folder = make(tmp_path_factory.mktemp("data") / "dataset", tokenizer)
    return ShardedDataset(mapped(folder, read_manifest(folder)))


def stream(dataset: ShardedDataset, split: str) -> list[int]:
    """A split's tokens, read without the code under test."""
    shards = dataset.manifest.splits[split].shards
    tokens: list[int] = np.concatenate([np.fromfile(dataset.folder / one.name, "<u2") for one in shards]).tolist()
    return tokens


# --- order


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3000), st.text())
def test_a_shuffle_is_a_bijection(size: int, key: str) -> None:
    assert sorted(shuffled(np.arange(size), size, key).tolist()) == list(range(size))


@settings(deadline=None, max_examples=50)
@given(st.integers(1 << 20, 1 << 60), st.integers(0, (1 << 20) - 1), st.text())
def test_a_shuffle_of_any_size_places_any_part_alone(size: int, place: int, key: str) -> None:
    found = shuffled(np.array([place, 0]), size, key)
    assert ((found >= 0) & (found < size)).all()
    assert found[0] == shuffled(np.array([place]), size, key)[0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=50), st.integers(10**8, 10**9), st.text())
def test_a_shuffle_of_a_thousand_million_can_be_undone_so_no_two_places_meet(
    places: list[int], size: int, key: str
) -> None:
    """Whatever its rounds compute, a Feistel network has an inverse, and so has a walk along its cycles."""
    numbers = np.array(places) % size
    found, half = shuffled(numbers, size, key), np.uint64(max(1, -(-(size - 1).bit_length() // 2)))

    def undone(values: Any) -> Any:
        left, right = values >> half, values & ((np.uint64(1) << half) - np.uint64(1))
        for one in reversed(round_keys(key)):
            left, right = right ^ (mixed(left ^ one) & ((np.uint64(1) << half) - np.uint64(1))), left
        return (left << half) | right

    back = undone(found.astype(np.uint64))
    while (outside := back >= size).any():
        back[outside] = undone(back[outside])
    assert (back == numbers).all()


def test_a_shuffle_looks_random_and_differs_by_key() -> None:
    one, two = (shuffled(np.arange(10_000), 10_000, key) for key in ("0/0", "0/1"))
    for found in (one, two):
        assert abs(np.corrcoef(found, np.arange(10_000))[0, 1]) < 0.05
        assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.05
    assert (one == two).mean() < 0.01


@settings(deadline=None, max_examples=25)  # each reads every window twice
@given(sequences=st.integers(20, 60), context=st.integers(16, 60), seed=st.integers(0, (1 << 63) - 1))
def test_an_epoch_reads_every_window_exactly_once(
    dataset: ShardedDataset, sequences: int, context: int, seed: int
) -> None:
    tokens = stream(dataset, "train")
    windows = (len(tokens) - 1) // context
    steps = -(-2 * windows // sequences)
    rows = [
        (tuple(ids), tuple(targets))
        for step in range(steps)
        for ids, targets in zip(
            *(part.tolist() for part in dataset.batch(step, sequences, context, seed, 0, 1)), strict=True
        )
    ]
    starts = [window * context for window in range(windows)]
    expected = Counter((tuple(tokens[at : at + context]), tuple(tokens[at + 1 : at + context + 1])) for at in starts)
    assert Counter(rows[:windows]) == expected
    assert Counter(rows[windows : 2 * windows]) == expected


@settings(deadline=None, max_examples=50)
@given(
    step=st.integers(0, 10**9),
    sequences=st.integers(1, 33),
    world=st.integers(1, 40),
    seed=st.integers(0, (1 << 63) - 1),
)
def test_the_ranks_slices_make_up_the_global_batch(
    dataset: ShardedDataset, step: int, sequences: int, world: int, seed: int
) -> None:
    def trained(rank: int, ranks: int) -> Batch:
        return dataset.batch(step, sequences, 16, seed, rank, ranks)

    def held_out(rank: int, ranks: int) -> Batch:
        return dataset.validation(sequences, 16, rank, ranks)

    for draw in (trained, held_out):
        whole, parts = draw(0, 1), [draw(rank, world) for rank in range(world)]
        for index, one in enumerate(whole):
            assert one.shape == (sequences, 16)
            assert torch.equal(torch.cat([part[index] for part in parts]), one)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 1_000))
def test_shares_differ_by_one_sequence_at_most(sequences: int, world: int) -> None:
    sizes = {len(share(sequences, rank, world)) for rank in range(world)}
    assert max(sizes) - min(sizes) <= 1


def test_batches_are_contiguous_tensors_of_int64_and_targets_are_the_next_tokens(dataset: ShardedDataset) -> None:
    ids, targets = dataset.batch(3, 8, 32, 0, 0, 1)
    assert (ids.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert ids.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(ids[:, 1:], targets[:, :-1])
    assert int(ids.max()) < dataset.vocabulary


def test_steps_seeds_and_epochs_differ_and_a_step_is_the_same_in_another_process(dataset: ShardedDataset) -> None:
    first = dataset.batch(0, 8, 32, 0, 0, 1)[0]
    assert torch.equal(dataset.batch(0, 8, 32, 0, 0, 1)[0], first)
    assert not torch.equal(dataset.batch(1, 8, 32, 0, 0, 1)[0], first)
    assert not torch.equal(dataset.batch(0, 8, 32, 1, 0, 1)[0], first)
    code = (
        "import sys; from teragpt.data import open_dataset\n"
        "print(open_dataset(sys.argv[1]).batch(0, 8, 32, 0, 0, 1)[0].tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code, str(dataset.folder)], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == first.tolist()


def test_validation_is_the_same_at_every_call_and_comes_again_where_it_is_short(dataset: ShardedDataset) -> None:
    windows = (dataset.tokens("validation") - 1) // 16
    ids, _ = dataset.validation(windows + 3, 16, 0, 1)
    assert torch.equal(dataset.validation(windows + 3, 16, 0, 1)[0], ids)
    assert torch.equal(ids[windows:], ids[:3])
    tokens = stream(dataset, "validation")
    expected = Counter(tuple(tokens[window * 16 : window * 16 + 16]) for window in range(windows))
    assert Counter(map(tuple, ids[:windows].tolist())) == expected


@settings(deadline=None, max_examples=10)
@given(st.integers(2, 2000))
def test_the_cut_into_shards_changes_no_batch(
    dataset: ShardedDataset, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, shard_tokens: int
) -> None:
    folder = make(tmp_path_factory.mktemp("cut") / "dataset", tokenizer, shard_tokens)
    other = ShardedDataset(mapped(folder, read_manifest(folder)))
    assert torch.equal(other.batch(5, 8, 64, 7, 0, 1)[0], dataset.batch(5, 8, 64, 7, 0, 1)[0])


# --- opening


def test_an_opened_dataset_tells_what_it_is(folder: Path, tokenizer: Tokenizer) -> None:
    dataset: Dataset = open_dataset(str(folder), tokenizer=str(folder / "tokenizer"))
    assert dataset.vocabulary == tokenizer.vocabulary
    assert dataset.tokenizer_fingerprint == tokenizer.fingerprint == Tokenizer(dataset.tokenizer).fingerprint
    assert dataset.fingerprint == read_manifest(folder).fingerprint
    assert dataset.tokens("train") > dataset.tokens("validation") > 0
    assert isinstance(dataset, ShardedDataset)
    assert 1 < dataset.unigram_entropy < np.log(dataset.vocabulary)


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    train_bpe(TEXTS, 270).save(tmp_path / "other")
    with pytest.raises(
        ConfigError, match=rf"tokenizer: got '{tmp_path}/other'; allowed: the tokenizer .*dataset/tokenizer"
    ):
        open_dataset(str(folder), tokenizer=str(tmp_path / "other"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_context_longer_than_a_split_is_refused(dataset: ShardedDataset, split: str) -> None:
    most = dataset.tokens(split) - 1

    def draw(context: int) -> torch.Tensor:
        drawn = dataset.batch(0, 1, context, 0, 0, 1) if split == "train" else dataset.validation(1, context, 0, 1)
        return drawn[0]

    assert draw(most).shape == (1, most)
    with pytest.raises(
        ConfigError, match=rf"context: got {most + 1}; allowed: at most {most} \(the {split} split of .*dataset"
    ):
        draw(most + 1)


def test_a_split_without_a_document_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write([Document((TEXTS[0],))], tmp_path / "dataset", tokenizer, Recipe(validation=0))
    with pytest.raises(ConfigError, match=r"data: got .*dataset'; allowed: .* a document in its validation split"):
        open_dataset(str(tmp_path / "dataset")).validation(1, 8, 0, 1)


def test_a_truncated_shard_is_refused_with_both_sizes(folder: Path) -> None:
    open_dataset(str(folder))
    path = folder / "train-00001.bin"
    os.truncate(path, 600)
    with pytest.raises(
        ConfigError, match=r"data: got '.*train-00001\.bin'; allowed: a file of 1,000 bytes, not of 600"
    ):
        open_dataset(str(folder))


def test_a_missing_shard_is_refused(folder: Path) -> None:
    (folder / "validation-00000.bin").unlink()
    with pytest.raises(ConfigError, match=r"validation-00000\.bin'; allowed: a file of 1,000 bytes \(No such file"):
        open_dataset(str(folder))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["train-00001.bin", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_flipped_bit_is_refused_before_and_after_a_good_opening(folder: Path, name: str, opened: bool) -> None:
    if opened:
        open_dataset(str(folder))
    flip(folder / name)
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"data: got '.*{name}'; allowed: content of SHA-256 \w+, not \w+"):
            open_dataset(str(folder))


def test_content_is_read_once_as_long_as_nothing_changes(folder: Path, cache: Path) -> None:
    open_dataset(str(folder))
    (record,) = (cache / "verified").glob("*.json")
    kept = (folder / "train-00001.bin").stat()
    flip(folder / "train-00001.bin")
    os.utime(folder / "train-00001.bin", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    open_dataset(str(folder))  # the price of not reading all of it: a change that hides itself is not seen
    record.write_text("half a rec", "utf-8")
    with pytest.raises(ConfigError, match="content of SHA-256"):
        open_dataset(str(folder))


def test_without_a_cache_content_is_read_each_time(folder: Path, cache: Path) -> None:
    cache.write_text("not a folder", "utf-8")
    open_dataset(str(folder))
    flip(folder / "train-00001.bin")
    with pytest.raises(ConfigError, match="content of SHA-256"):
        open_dataset(str(folder))


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"data: got '{tmp_path}/none'; allowed: .*no such folder"):
        open_dataset(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=rf"data: got '{tmp_path}'; allowed: .*it holds no dataset\.json"):
        open_dataset(str(tmp_path))


def test_a_manifest_cut_in_half_is_refused(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 100)
    with pytest.raises(ConfigError, match=r"dataset\.json'; allowed: a readable JSON file"):
        open_dataset(str(folder))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "it is a teragpt-dataset of version 2"),
        ({"dtype": "uint32"}, "uint32 tokens for a vocabulary of"),
        ({"splits": {}}, "KeyError: 'train'"),
        ({"splits": None}, "AttributeError"),
        ({"tokenizer_files": [{"name": "x"}]}, "TypeError"),
        ({"vocabulary": "many"}, "ValueError"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(folder: Path, change: dict[str, object], problem: str) -> None:
    content = json.loads((folder / MANIFEST).read_text("utf-8"))
    (folder / MANIFEST).write_text(json.dumps({**content, **change}), "utf-8")
    with pytest.raises(
        ConfigError, match=rf"data: got '.*dataset\.json'; allowed: a teragpt-dataset of version 1.*{problem}"
    ):
        open_dataset(str(folder))


def test_counts_that_do_not_add_up_are_refused(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text("utf-8"))
    content["splits"]["train"]["tokens"] += 1
    with pytest.raises(ValueError, match="train tokens in shards of"):
        parse_manifest(content)
