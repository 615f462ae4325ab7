from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teragpt.config import ConfigError
from teragpt.data import MixedDataset, open_dataset
from teragpt.datasets.mixture import Schedule
from teragpt.datasets.portions import Portion, parse_mixture, whole
from teragpt.prepare.assembly import write
from teragpt.prepare.documents import Document, Recipe
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe
from tests.teragpt import ranks

TEXTS = {"web": "the cat sat on the mat\n", "code": "def value():\n    return 1\n"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(list(TEXTS.values()) * 9, 270).save(folder)
    return Tokenizer(str(folder))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mixture")
    for name, text in TEXTS.items():
        documents = [Document((f"{number} {text * 20}",)) for number in range(40)]
        write(documents, root / name, tokenizer, Recipe(validation=0.3))
    return {name: root / name for name in TEXTS}


def opened(data: str) -> MixedDataset:
    dataset = open_dataset(data)
    assert isinstance(dataset, MixedDataset)
    return dataset


def test_a_mixture_is_told_from_a_place() -> None:
    assert parse_mixture("a:0.7,s3://b/c:.3:2") == (
        Portion("a", Fraction("0.7")),
        Portion("s3://b/c", Fraction("0.3"), 2),
    )
    assert parse_mixture("web:1:3") == (Portion("web", Fraction(1), 3),)
    assert whole(parse_mixture("a:0.7,b:0.2,c:0.1")) == [7, 2, 1]
    for place in ("", "folder", "memory://x:9000", "with,comma"):
        assert parse_mixture(place) == ()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a:0,b:0", "weights above 0"),
        ("a:1,b", "PLACE:WEIGHT"),
        ("a:1:0,b:1", "PLACE:WEIGHT"),
        ("a:1,a:2", "each place once"),
        ("a:0.1234567,b:1", "whole parts of at most 100,000"),
    ],
)
def test_a_mixture_that_is_none_is_refused(data: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"data: got '{data}'; allowed: .*{said}"):
        parse_mixture(data)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 10**12))
def test_of_any_sequences_each_source_gives_its_part_within_one(weights: list[int], start: int) -> None:
    schedule, total = Schedule(weights, [0] * len(weights)), sum(weights)
    start -= start % total
    source, number = schedule.take(start + np.arange(2 * total))
    for count in range(2 * total + 1):
        given_so_far = np.bincount(source[:count], minlength=len(weights))
        assert (abs(given_so_far * total - count * np.array(weights)) < total).all()
    for at, weight in enumerate(weights):
        assert (number[source == at] == start // total * weight + np.arange(2 * weight)).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 60)), min_size=1, max_size=4))
def test_a_capped_source_gives_all_it_may_and_then_leaves_its_part_to_the_others(
    sources: list[tuple[int, int]],
) -> None:
    weights, limits = [one[0] for one in sources], [one[1] for one in sources]
    schedule = Schedule(weights, limits)
    assert (schedule.end is None) == (0 in limits)
    length = schedule.end if schedule.end is not None else 2000
    source, number = schedule.take(np.arange(length))
    for at, limit in enumerate(limits):
        given_in_all = number[source == at]
        assert (given_in_all == np.arange(len(given_in_all))).all()
        assert not limit or len(given_in_all) <= limit
    if schedule.end is not None:
        assert length == sum(limits)


def test_a_step_is_drawn_in_proportion_and_the_ranks_slices_make_it_up(places: dict[str, Path]) -> None:
    dataset = opened(f"{places['web']}:0.7,{places['code']}:0.3")
    web, code = (opened_one.sequences(np.arange(20), 16, 5)[0] for opened_one in dataset.datasets)
    taken: list[torch.Tensor] = []
    for step in range(2):
        ids, targets = dataset.batch(step, 10, 16, 5, 0, 1)
        parts = [dataset.batch(step, 10, 16, 5, rank, 3) for rank in range(3)]
        assert torch.equal(torch.cat([part[0] for part in parts]), ids)
        assert torch.equal(ids[:, 1:], targets[:, :-1])
        taken += list(ids)
    rows = {tuple(row.tolist()) for row in taken}
    assert rows == {tuple(row.tolist()) for row in (*web[:14], *code[:6])}
    assert list(dataset.sources) == ["web", "code"]
    assert dataset.fingerprint != opened(f"{places['web']}:0.6,{places['code']}:0.4").fingerprint


def test_a_mixture_that_is_read_through_is_refused(places: dict[str, Path]) -> None:
    dataset = opened(f"{places['web']}:1:1,{places['code']}:1:2")
    windows = [one.windows("train", 16) for one in dataset.datasets]
    last = windows[0] + 2 * windows[1]
    dataset.batch(last - 1, 1, 16, 0, 0, 1)
    with pytest.raises(ConfigError, match=f"read through after {last:,} sequences"):
        dataset.batch(last, 1, 16, 0, 0, 1)


def test_sources_of_several_tokenizers_do_not_mix(places: dict[str, Path], tmp_path: Path) -> None:
    write([Document((TEXTS["web"] * 9,))], tmp_path / "other", train_bpe(["other text"] * 9, 260), Recipe())
    with pytest.raises(ConfigError, match=r"other'; allowed: a dataset of the same tokenizer as .*web"):
        open_dataset(f"{places['web']}:1,{tmp_path / 'other'}:1")


def test_a_run_trains_on_a_mixture_of_packed_documents_and_tells_each_sources_loss(
    places: dict[str, Path], tmp_path: Path
) -> None:
    data = f"{places['web']}:0.75,{places['code']}:0.25"
    code, output = ranks.train(
        {"out": tmp_path / "run", "data": data, "steps": 2, "eval_every": 2, "packing": "documents"}
    )
    assert code == 0, output
    said = [line for line in output.splitlines() if line.startswith("eval 2/2")]
    assert said[0].count("|") == 3
    assert " | web " in said[0]
    assert " | code " in said[0]
    code, output = ranks.train({"out": tmp_path / "none", "data": f"{places['web']}:1:1", "steps": 10**6})
    assert code == 2
    assert "read through after" in output
