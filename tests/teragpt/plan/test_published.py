from __future__ import annotations

import json
from pathlib import Path

import pytest

from teragpt.plan import cluster_of, plan
from teragpt.plan.calibration import shipped
from tests.teragpt.plan.published import FOUNDRY, SETS, Row, foundry, nemo, rate, rows, titan

B, C3 = {"dim": 2048, "depth": 24, "heads": 16, "kv_heads": 16, "ffn": 5504, "num_tokens": 32_000}, 3072
A = {"dim": 768, "depth": 12, "heads": 12, "kv_heads": 12, "ffn": 2048, "num_tokens": 50_304}
# one H100, docs/notebook.md: the first fixed constants, the others did not
ALONE = [
    (B, Row("1.3B", 2048, 1, "h100", 8, 1, "none", 60_872), "bf16"),
    (A, Row("124M", 1024, 1, "h100", 32, 1, "none", 471_914), "bf16"),
    (
        {**B, "dim": C3, "depth": 28, "heads": 24, "kv_heads": 8, "ffn": 8192},
        Row("3.0B", 4096, 1, "h100", 2, 1, "none", 25_056),
        "bf16",
    ),
    (
        {**B, "dim": C3, "depth": 28, "heads": 24, "kv_heads": 8, "ffn": 8192},
        Row("3.0B", 4096, 1, "h100", 2, 1, "none", 30_652),
        "fp8",
    ),
    (B, Row("1.3B", 2048, 1, "h100", 8, 1, "none", 73_744), "fp8"),
    (
        {"dim": 4096, "depth": 32, "heads": 32, "kv_heads": 8, "ffn": 14_336, "num_tokens": 128_256},
        Row("8B", 8192, 1, "h100", 1, 1, "full", 8042),
        "bf16",
    ),
]


@pytest.mark.parametrize(("shape", "row", "precision"), ALONE, ids=lambda one: getattr(one, "name", None))
def test_steps_of_one_h100_are_within_a_twentieth_of_what_was_measured(
    shape: dict[str, int], row: Row, precision: str
) -> None:
    assert rate(shape, row, shipped(), precision) == pytest.approx(row.rate, rel=0.05)


@pytest.mark.parametrize("card", ["h100", "a100"])
def test_one_published_row_of_a_framework_predicts_its_others(card: str) -> None:
    found = [(row, row.rate / foundry(row)) for row in rows(FOUNDRY) if row.card == card]
    (sets,) = (ratio for row, ratio in found if (row.name, row.tokens, row.gpus) == SETS)
    errors = sorted(abs(sets / ratio - 1) for row, ratio in found if (row.name, row.tokens, row.gpus) != SETS)
    assert errors[-1] <= 0.22
    assert sum(error <= 0.15 for error in errors) >= 0.9 * len(errors)


def test_other_frameworks_are_not_expected_to_be_as_quick_as_the_shipped_calibration() -> None:
    ratios = sorted(foundry(row) / row.rate for row in rows(FOUNDRY) if row.card == "h100")
    assert 1.2 <= ratios[len(ratios) // 2] <= 1.3  # what the upper bound of a plan for several GPUs rests on


def test_another_frameworks_first_row_predicts_shards_contexts_and_eight_bits_and_less_well_tp_and_pp() -> None:
    sets, *others = titan()
    errors = [abs(sets / ratio - 1) for ratio in others]
    assert max(errors[:5]) <= 0.08
    assert max(errors[5:]) <= 0.27


def test_a_third_frameworks_first_row_predicts_tp_cp_and_interleaved_stages_on_8_to_512_gpus() -> None:
    sets, *others = nemo()
    errors = [abs(sets / ratio - 1) for ratio in others]
    assert len(errors) == 8
    assert max(errors) <= 0.10


def test_steps_of_one_h200_are_within_a_tenth_of_what_was_measured() -> None:
    # layouts of random specs, none of which fixed a constant (benchmarks.gpu.plan_choices, docs/notebook.md)
    text = Path(__file__).with_name("h200.jsonl").read_text("utf-8")
    named = (
        {**row, "settings": {"optimizer": "adamw", **row["settings"]}} for row in map(json.loads, text.splitlines())
    )
    points = [(row, plan(row["settings"], cluster_of("h200", 1)).best) for row in named]
    errors = sorted(abs(best.seconds * 1000 / row["ms"] - 1) for row, best in points)
    assert sum(error <= 0.10 for error in errors) >= 0.9 * len(errors)
    assert errors[-1] <= 0.20
    for row, best in points:
        assert best.memory.peak == pytest.approx(row["gb"] * 1e9, rel=0.05, abs=150e6), row["settings"]
