from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from teragpt.activations import micro_batch
from teragpt.model import TeraGPT
from teragpt.sizes import REFERENCE_VOCABULARY, SIZES, TINY, padded, recipe

NAMED = [name for name in SIZES if name != TINY]
UNITS = {"m": 1e6, "b": 1e9, "t": 1e12}


def promised(name: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([mbt])", name).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


@pytest.mark.parametrize("name", NAMED)
def test_a_size_has_the_parameters_that_its_name_says(name: str) -> None:
    assert abs(SIZES[name].parameters() / promised(name) - 1) <= 0.03


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("vocabulary", [REFERENCE_VOCABULARY, 2048, 20_000])
def test_the_count_is_that_of_the_built_model(name: str, vocabulary: int) -> None:
    shape = SIZES[name]
    with torch.device("meta"):
        model = TeraGPT(
            shape.dim, shape.depth, shape.heads, vocabulary, kv_heads=shape.kv_heads, ffn=shape.ffn, tied=shape.tied
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters(vocabulary)


@pytest.mark.parametrize("name", SIZES)
def test_shapes_divide_for_every_mesh(name: str) -> None:
    shape = SIZES[name]
    assert shape.dim % shape.heads == 0
    assert shape.head_dim % 2 == 0
    assert shape.heads % shape.kv_heads == 0
    assert shape.ffn % 128 == 0
    assert shape.tied == (shape.parameters() < 1e9)


def test_vocabularies_are_padded_to_a_multiple_of_128() -> None:
    assert [padded(number) for number in (1, 128, 129, 50_257)] == [128, 128, 256, 50_304]


def test_a_larger_size_takes_a_larger_batch_and_a_smaller_rate() -> None:
    recipes = [recipe(SIZES[name], REFERENCE_VOCABULARY, SIZES[name].context) for name in NAMED]
    assert [one.batch for one in recipes] == sorted(one.batch for one in recipes)
    assert [one.learning_rate for one in recipes] == sorted((one.learning_rate for one in recipes), reverse=True)
    assert all(one.batch & (one.batch - 1) == 0 for one in recipes)


def test_a_short_run_has_a_batch_small_enough_for_its_steps_and_a_long_one_the_rule_s() -> None:
    shape = SIZES["124m"]
    batches = {tokens: recipe(shape, REFERENCE_VOCABULARY, 1024, tokens).batch for tokens in (1, 10**7, 4 * 10**7)}
    assert batches == {1: 1024, 10**7: 16_384, 4 * 10**7: 65_536}
    assert recipe(shape, REFERENCE_VOCABULARY, 1024).tokens / recipe(shape, REFERENCE_VOCABULARY, 1024).batch > 5000


def test_flops_are_six_a_matmul_weight_and_token_and_attention_at_half() -> None:
    shape = SIZES["1.3b"]
    matmul = shape.parameters() - padded(REFERENCE_VOCABULARY) * shape.dim
    assert shape.flops_per_token(REFERENCE_VOCABULARY, 2048) == 6 * matmul + 6 * 24 * 2048 * 2048


@pytest.mark.parametrize("name", SIZES)
def test_a_micro_batch_is_a_power_of_two_within_the_batch(name: str) -> None:
    count = micro_batch(SIZES[name], 24)
    assert 1 <= count <= 24
    assert count & (count - 1) == 0


def test_the_largest_named_gpt_3_builds_on_the_meta_device_without_its_memory() -> None:
    script = (
        "import torch; from teragpt.reporting.metrics import memory_bytes; from teragpt.model import TeraGPT\n"
        "from teragpt.sizes import SIZES\n"
        "s = SIZES['175b']\n"
        "with torch.device('meta'): m = TeraGPT(s.dim, s.depth, s.heads, 50304, kv_heads=s.kv_heads, ffn=s.ffn)\n"
        "print(sum(p.numel() for p in m.parameters()), memory_bytes())"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    parameters, held = map(int, output.split())
    assert parameters == SIZES["175b"].parameters()
    assert held < 1_000_000_000
