from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from teragpt.config import Config, ConfigError, resolve
from teragpt.layout import State, asked, main, misfits, needed, state
from teragpt.model import Attention, TeraGPT
from teragpt.parallelism.mesh import eager, settled
from tests.teragpt import fake, ranks

# a mesh that each size is trained on, from 7 ranks to 4,096: with Muon, unless its state is in bf16
MESHES: list[tuple[str, int, dict[str, object]]] = [
    ("8b", 7, {}),
    ("13b", 8, {}),
    ("13b", 48, {"dp_replicate": 2, "tp": 2}),
    ("70b", 256, {"tp": 8, "cp": 4}),
    ("175b", 768, {"tp": 8, "dp_replicate": 2}),
    ("405b", 1024, {"tp": 8, "state_dtype": "bf16"}),
    ("1t", 4096, {"tp": 8, "pp": 16}),
]
LIKE_THESE: list[tuple[str, int, dict[str, object]]] = [
    ("70b", 512, {"tp": 8}),
    ("405b", 2048, {"tp": 8, "cp": 4}),
    ("405b", 4096, {"tp": 8, "pp": 8}),
]


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    ("size", "count", "mesh"), [*MESHES, *(pytest.param(*one, marks=pytest.mark.deep) for one in LIKE_THESE)]
)
def test_the_first_and_last_rank_of_every_large_size_hold_what_is_planned(
    size: str, count: int, mesh: dict[str, object]
) -> None:
    config, _ = asked(["--ranks", str(count), *ranks.arguments({"size": size, **mesh})])
    for rank in (0, count - 1):
        assert fake.on_meta(config, count, rank) == state(config, count, rank)


@pytest.mark.unmeasured
def test_a_rank_of_a_thousand_is_laid_out_in_a_gigabyte() -> None:
    words = ["--ranks", "1024", "--size", "175b", "--set", "tp=8"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.teragpt.fake", *words], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert [State(**one) for one in found["held"]] == [state(*asked(words), rank) for rank in (0, 1023)]
    assert found["peak"] <= 1 << 30, "bytes of resident memory"


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Config, int, set[int]]:
    """A small shape, a mesh that can cut it, mostly into uneven slices, and ranks: the first, the last, some others."""
    tp, cp, replicas, pp = (draw(st.sampled_from([1, 1, 2])) for _ in range(4))
    chunks = draw(st.sampled_from([1, 2]))
    kv_heads = tp * draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 2))
    shape = {
        "heads": heads,
        "kv_heads": kv_heads,
        "dim": heads * 2 * draw(st.integers(4, 9)),
        "ffn": tp * draw(st.integers(8, 30)),
        "depth": pp * chunks + draw(st.integers(0, 2)),
        "num_tokens": draw(st.integers(2, 700)),
        "tied": draw(st.booleans()),
    }
    shape |= draw(st.sampled_from([{}, {"head_dim": 6}, {"head_dim": 22}]))
    rest: dict[str, object] = {"context": 32, "global_batch_tokens": 32 * 60}
    rest |= draw(st.sampled_from([{}, {"optimizer": "muon"}, {"state_dtype": "bf16"}]))
    rest |= {"pipeline_chunks": chunks, "pipeline_schedule": "interleaved" if chunks > 1 else "1f1b"}
    mesh = {"tp": tp, "cp": cp, "dp_replicate": replicas, "pp": pp}
    count = tp * cp * replicas * pp * draw(st.integers(1, 3))
    some = draw(st.sets(st.integers(0, count - 1), min_size=min(count, 3), max_size=3))
    return resolve({**shape, **rest, **mesh}), count, {0, count - 1, *some}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(worlds())
def test_any_rank_of_any_world_holds_what_is_planned(world: tuple[Config, int, set[int]]) -> None:
    config, count, some = world
    for rank in some:
        assert fake.on_meta(config, count, rank) == state(config, count, rank)
    assert max(state(config, count, rank).total for rank in range(count)) == state(config, count).total


@pytest.mark.parametrize(
    ("count", "given"),
    [
        (1, {}),
        (3, {}),
        (4, {"tp": 2}),
        (6, {"tp": 2, "tied": False}),
        (6, {"dp_replicate": 2, "optimizer": "muon"}),
        (6, {"cp": 2, "precision": "fp64"}),
        (1, {"state_dtype": "bf16"}),
        (6, {"tp": 2, "state_dtype": "bf16"}),
    ],
)
def test_a_rank_that_trains_holds_what_is_planned(count: int, given: dict[str, object]) -> None:
    config = resolve({**ranks.SMALL, "kv_heads": 2, "num_tokens": 300, "global_batch_tokens": 32 * 12, **given})
    for rank in {0, count - 1}:
        assert fake.trained(config, count, rank) == state(config, count, rank)


def test_the_command_tells_the_first_and_the_fullest_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "175b", "--ranks", "1024", "--set", "tp=8"]) == 0
    printed = capsys.readouterr().out
    assert "175b on 1,024 ranks: dp_shard 128, tp 8" in printed
    first, fullest = re.findall(r"rank +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+)", printed)
    assert first == ("684,467,328", "684,467,328", "689,457,408", "2,058,392,064") == fullest
    assert main(["--size", "175b", "--ranks", "1024", "--set", "tp=7"]) == 2
    assert "tp: got 7" in capsys.readouterr().err
    assert main(["--ranks", "none"]) == 2
    assert "ranks: got 'none'; allowed: a whole number from 1" in capsys.readouterr().err


SHAPE = {"dim": 96, "heads": 12, "kv_heads": 6, "depth": 4, "context": 48, "global_batch_tokens": 48 * 12}


@pytest.mark.parametrize(
    ("count", "given", "told"),
    [
        (12, {"tp": 4}, "tp: got 4; allowed: a divisor of kv_heads 6"),
        (12, {"tp": 3, "ffn": 128}, "tp: got 3; allowed: a divisor of ffn 128"),
        (12, {"tp": 3, "num_tokens": 128}, "tp: got 3; allowed: a divisor of the padded vocabulary 128"),
        (12, {"tp": 2, "cp": 3, "context": 40}, "context: got 40; allowed: a multiple of 12, for tp 2 and cp 3"),
        (12, {"pp": 6}, "pp: got 6; allowed: at most depth 4"),
        (12, {"tp": 2, "cp": 4, "dp_replicate": 2}, "cp: got 4; allowed: a divisor of 6, what is left of 12 ranks"),
        (8, {"tp": 3, "ffn": 96, "num_tokens": 300}, "tp: got 3; allowed: a divisor of the world size 8"),
        (9, {"dp_replicate": 2}, "dp_replicate: got 2; allowed: a divisor of the world size 9"),
        (13, {}, "global_batch_tokens: got 576; allowed: at least a sequence of 48 tokens for each of 13 parts"),
        (
            12,
            {"eval_sequences": 11},
            "eval_sequences: got 11; allowed: at least a sequence of 48 tokens for each of 12",
        ),
    ],
)
def test_a_mesh_that_cannot_be_is_refused_by_its_setting(count: int, given: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError) as caught, fake.world(count, count - 1):
        fake.laid_out(resolve({**SHAPE, **given}))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "count", "advice"),
    [
        ({"size": "13b"}, 1, "dp_shard 2 on 2 ranks"),
        ({"size": "13b", "optimizer": "adamw"}, 1, "dp_shard 4 on 4 ranks"),
        ({"size": "13b", "optimizer": "adamw", "dp_replicate": 8}, 16, "dp_replicate 4, which takes 55.3 GiB"),
        ({"size": "13b", "optimizer": "adamw", "dp_replicate": 4, "tp": 2}, 8, "dp_replicate 2, which takes 50.9 GiB"),
        ({"size": "175b", "optimizer": "adamw", "tp": 8}, 8, "dp_shard 8, tp 8 on 64 ranks"),
        ({"size": "8b", "micro_batch": 4}, 1, "dp_shard 2 on 2 ranks, micro_batch 1"),
    ],
)
def test_more_than_a_card_has_is_refused_with_the_nearest_layout_that_fits(
    settings: dict[str, object], count: int, advice: str
) -> None:
    config = resolve(settings)
    (problem,) = misfits(config, count, 80 << 30)
    assert problem.field == "size"
    assert problem.allowed.startswith("what fits the 80 GiB that a rank has; ")
    assert problem.allowed.endswith(f"nearest that fits: {advice}")
    assert not list(misfits(config, count, needed(config, count)))


@pytest.mark.parametrize(
    ("settings", "memory", "advice"),
    [
        ({"size": "8b", "micro_batch": 64, "context": 8192}, 100 << 30, "micro_batch 2"),
        ({"size": "8b", "micro_batch": 1, "context": 8192}, 20 << 30, "micro_batch 1, recompute full"),
    ],
)
def test_what_blocks_keep_for_backward_counts_and_less_at_once_is_named(
    settings: dict[str, object], memory: int, advice: str
) -> None:
    config = resolve(settings)
    (problem,) = misfits(config, 8, memory)
    assert "for state and what blocks keep for backward, at the least; " in problem.allowed
    assert problem.allowed.endswith(f"nearest that fits: {advice}")
    assert state(config, 8).total < memory < needed(config, 8)


def test_ranks_without_a_gpu_take_few_sequences_at_once_and_refuse_what_they_cannot_hold() -> None:
    config, cpu = resolve({"size": "124m"}), torch.device("cpu")
    assert settled(config, {}, torch.device("cuda")) == config
    assert settled(config, {"micro_batch": 32}, cpu) == config
    few = settled(config, {}, cpu)
    assert few == replace(config, micro_batch=1)
    assert not list(misfits(eager(few), 2, 11 << 30))
    (problem,) = misfits(eager(config), 2, 11 << 30)
    assert problem.allowed.endswith("nearest that fits: micro_batch 8")
    assert eager(replace(config, precision="bf16", compile="on")) == replace(config, precision="bf16", compile="on")


class NoAttend(Attention):
    """Attention that calls its function itself."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        del self.attend


class OwnModel(TeraGPT):
    """A model of somebody's own, with a matrix that no mesh knows, and attention that cannot be replaced."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.places = nn.Embedding(8, 32)
        self.layers[1].self_attn = NoAttend(32, 2, 2, 16, 1e-6)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Without positions."""
        return super().forward(ids, targets=targets)


class Plain(nn.Module):
    """A model that has no part of ours."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.matrix = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("model", "mesh", "told"),
    [
        (OwnModel, {"tp": 2}, "tp: got 2; allowed: 1 for OwnModel, .*nothing says how to cut places.weight"),
        (
            OwnModel,
            {"cp": 2},
            "cp: got 2; allowed: 1 for OwnModel, .*layers.1 has no attend, forward takes no positions",
        ),
        (Plain, {"tp": 2}, "tp: got 2; allowed: 1 for Plain, .*has no embed_tokens, the model has no norm"),
        (Plain, {"cp": 2}, "cp: got 2; allowed: 1 for Plain, .*the model has no attend"),
    ],
)
def test_a_model_without_what_a_mesh_cuts_is_refused_by_name(
    model: type[nn.Module], mesh: dict[str, int], told: str
) -> None:
    config = resolve({**ranks.SMALL, "kv_heads": 2, **mesh})
    with fake.world(2, 1), pytest.raises(ConfigError, match=told):
        fake.laid_out(config, model)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dp_replicate": 3}, "dp_replicate: got 3; allowed: a divisor of the world size 2"),
        ({"size": "175b", "depth": 96, "dim": 12288, "ffn": 32768}, "size: got '175b'; allowed: what fits the"),
        ({"tp": 2, "kv_heads": 2, "model": "tests.teragpt.test_layout:OwnModel"}, "tp: got 2; allowed: 1 for OwnModel"),
        ({"model": "math:hypot"}, "model: got 'math:hypot'; allowed: a constructor like TeraGPT's (TypeError: "),
    ],
)
def test_every_rank_ends_with_code_2_and_nothing_is_written(
    tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    out = tmp_path / "run"
    code, output = ranks.train({"out": out, **settings}, 2)
    assert code == 2, output
    assert output.count(f"\nerror: {told}") + output.startswith(f"error: {told}") <= 1
    assert f"error: {told}" in output
    assert "step 1/" not in output
    assert not out.exists()
