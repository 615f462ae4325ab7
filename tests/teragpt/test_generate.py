from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from teragpt.config import ConfigError
from teragpt.inference.generate import Drawn, Generation, Sampling, draw, generator
from teragpt.model import TeraGPT

CONTEXT = 12


@pytest.fixture(scope="module")
def model() -> TeraGPT:
    torch.manual_seed(0)
    made = TeraGPT(32, 2, 4, 300, kv_heads=2).eval()
    for weight in made.parameters():
        weight.data.mul_(3)  # so that what is likeliest is far from what comes next
    return made


def greedy(model: TeraGPT, prompts: list[list[int]], tokens: int, ended: int | None = None) -> list[list[int]]:
    """Tokens that follow prompts; the row `ended` goes on no more after five."""
    generation = Generation(model, prompts, CONTEXT, Sampling(temperature=0))
    rows: list[list[int]] = [[] for _ in prompts]
    for number in range(tokens):
        for row, one in generation.step():
            rows[row].append(one.token)
        if number == 4 and ended is not None:
            generation.finish([ended])
    return rows


def test_each_token_is_the_one_that_the_model_holds_likeliest_after_all_before(model: TeraGPT) -> None:
    ids = [1, 2, 3]
    drawn = greedy(model, [ids], CONTEXT - 2)[0]
    with torch.no_grad():
        for token in drawn:
            assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
            ids.append(token)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=CONTEXT + 3), min_size=2, max_size=3))
def test_a_row_is_the_same_whatever_is_beside_it_and_past_the_context(model: TeraGPT, prompts: list[list[int]]) -> None:
    together = greedy(model, prompts, CONTEXT + 8, ended=1)
    for row, prompt in enumerate(prompts):
        alone = greedy(model, [prompt], CONTEXT + 8)[0]
        assert together[row] == alone[: 5 if row == 1 else None]


def test_a_model_attends_as_before_once_a_token_is_drawn(model: TeraGPT) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = model(ids)
        first, second = (Generation(model, [[1, 2, 3], [4]], CONTEXT, Sampling(seed=0)) for _ in range(2))
        taken = [(first.step(), second.step()) for _ in range(4)]  # in turn, on one model
        assert torch.equal(model(ids), before)
    assert all(one == other for one, other in taken)


def test_only_the_likeliest_tokens_are_drawn() -> None:
    logits, generators = torch.tensor([[0.0, 3.0, 2.0, 1.0]]), [generator(0, 0)]

    def drawn(top_k: int, top_p: float) -> set[int]:
        how = Sampling(temperature=1.0, top_k=top_k, top_p=top_p)
        return {draw(logits, generators, how)[0].token for _ in range(200)}

    assert drawn(0, 1.0) == {0, 1, 2, 3}
    assert drawn(2, 1.0) == {1, 2}
    assert drawn(0, 0.5) == {1}
    assert drawn(0, 0.7) == {1, 2}
    assert draw(logits, generators, Sampling(temperature=0, top_k=0, top_p=1.0)) == [Drawn(1)]


def test_chances_are_those_of_the_tempered_softmax() -> None:
    logits, generators = torch.tensor([[0.0, 1.0, 2.0]]), [generator(0, 0)]
    how = Sampling(temperature=2.0, top_k=0, top_p=1.0)
    counts = torch.zeros(3)
    for _ in range(4000):
        counts[draw(logits, generators, how)[0].token] += 1
    assert (counts / 4000 - (logits[0] / 2).softmax(0)).abs().max() < 0.03


def test_log_probabilities_are_the_models_whatever_the_temperature() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0], [1.0, 0.0, 0.0]])
    first, second = draw(logits, [generator(0, row) for row in range(2)], Sampling(temperature=0, logprobs=2))
    told = logits.log_softmax(1)
    assert (first.token, second.token) == (1, 0)
    assert first.logprob == pytest.approx(float(told[0, 1]))
    assert [name for name, _ in first.likeliest] == [1, 2]
    assert math.exp(first.likeliest[1][1]) == pytest.approx(float(told[0, 2].exp()))


def test_a_model_that_cannot_be_given_a_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="model: got 'Linear'"):
        Generation(nn.Linear(1, 1), [[1]], CONTEXT, Sampling())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 0), ("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("seed", -1),
        ("stop", ("",)), ("logprobs", 21),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field}: got"):
        Sampling(**{field: value})  # type: ignore[arg-type]
