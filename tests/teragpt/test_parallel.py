from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from teragpt.config import Config, ConfigError, resolve
from teragpt.model import TeraGPT
from teragpt.parallel import (
    build_model,
    compute_dtype,
    draw,
    evaluate,
    forward_backward,
    load_attribute,
    load_dataset,
    materialize,
)
from teragpt.parallelism.mesh import build_mesh
from tests.teragpt import ranks


def test_initial_rows_do_not_depend_on_who_draws_them() -> None:
    whole, part = torch.empty(3000, 4), torch.empty(1500, 2)
    with ThreadPoolExecutor(2) as pool:
        draw(pool, whole, slice(0, 3000), [slice(0, 4)], (3000, 4), 0.1, "key")
        draw(pool, part, slice(1200, 2700), [slice(1, 3)], (3000, 4), 0.1, "key")
    assert torch.equal(whole[1200:2700, 1:3], part)
    assert abs(float(whole.std()) - 0.1) < 0.01


def test_initial_weights_differ_by_seed_and_name_but_not_by_precision() -> None:
    def build(**settings: object) -> nn.Module:
        config = resolve(settings)
        with torch.device("meta"):
            model = TeraGPT(32, 2, 2, 300)
        materialize(model, config, torch.device("cpu"))
        return model

    first, again, other, wide = build(), build(), build(seed=1), build(precision="fp64")
    weights = dict(first.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in again.named_parameters())
    assert not torch.equal(weights["embed_tokens.weight"], dict(other.named_parameters())["embed_tokens.weight"])
    assert all(torch.equal(weights[name].double(), value) for name, value in wide.named_parameters())
    assert not torch.equal(weights["layers.0.mlp.gate_proj.weight"], weights["layers.1.mlp.gate_proj.weight"])


def test_precision_follows_the_device_unless_it_is_given() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compute_dtype(Config(), cpu) == torch.float32
    assert compute_dtype(Config(), gpu) == torch.bfloat16
    assert compute_dtype(Config(precision="fp64"), gpu) == torch.float64


OWN = {
    "raising": "raise RuntimeError('not today')",
    "spoiled": "def Model(:",
    "wanting": "import no_such_package",
    "deep": "import json, torch\ndef Model(*_, **__): return torch.empty(3).view(5)\n"
    "def Layer(*_, **__):\n    return torch.nn.Linear('a', 2)\ndef Data(*_, **__): return json.loads('{')",
    "wrong": "Model = 5\ndef Number(*_, **__): return 5\ndef Bad(*_, **__): raise KeyError('x')\nData = Number",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules of somebody's own, from which they are imported."""
    for name, source in OWN.items():
        (tmp_path / f"{name}_of_mine.py").write_text(source)
        monkeypatch.delitem(sys.modules, f"{name}_of_mine", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no.such.module:it", "ModuleNotFoundError: No module named 'no'"),
        ("teragpt.model:NoSuchModel", "AttributeError: module 'teragpt.model' has no attribute 'NoSuchModel'"),
        ("raising_of_mine:Model", "RuntimeError at OWN/raising_of_mine.py:1: not today"),
        ("spoiled_of_mine:Model", "SyntaxError: invalid syntax"),
        ("wanting_of_mine:Model", "ModuleNotFoundError at OWN/wanting_of_mine.py:1: No module named 'no_such_package'"),
        ("deep_of_mine:Model", "RuntimeError at OWN/deep_of_mine.py:2: shape"),
        ("deep_of_mine:Layer", "TypeError at OWN/deep_of_mine.py:4: "),
        ("wrong_of_mine:Model", "TypeError: Model is of type int"),
        ("wrong_of_mine:Number", "TypeError: it returns int, no torch.nn.Module"),
        ("wrong_of_mine:Bad", "KeyError at OWN/wrong_of_mine.py:3: 'x'"),
        ("teragpt.model:Norm", "TypeError: Norm.__init__() got an unexpected keyword argument 'kv_heads'"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_by_name_and_line(own: Path, name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(load_attribute(name, "model"), resolve({"model": name}))
    assert str(caught.value).startswith(f"model: got '{name}'; allowed: ")
    assert told.replace("OWN", str(own)) in str(caught.value)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raising_of_mine:Data", "RuntimeError at "),
        ("deep_of_mine:Data", "deep_of_mine.py:5: Expecting property name"),
        ("wrong_of_mine:Model", "TypeError: Model is of type int"),
        ("wrong_of_mine:Data", "TypeError: what it returns has no batch, fingerprint, "),
        ("wrong_of_mine:Bad", "KeyError at "),
    ],
)
def test_a_loader_that_makes_no_dataset_is_refused_by_name(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset(name, "")
    assert str(caught.value).startswith(f"loader: got '{name}'; allowed: ")
    assert told in str(caught.value)


def test_replicas_that_do_not_divide_the_ranks_are_refused(tmp_path: Path) -> None:
    code, output = ranks.train({"out": tmp_path / "run", "dp_replicate": 2})
    assert code == 2
    assert "dp_replicate: got 2; allowed: a divisor of the world size 1" in output


APART = """
import resource, sys, torch
from teragpt.config import resolve
from teragpt.model import TeraGPT
from teragpt.parallel import build_model, keep_freed_memory
build_model(TeraGPT, resolve({"size": "tiny"}))
keep_freed_memory()
for _ in range(8):  # until the heap is as large as it gets
    torch.ones(16 << 20)  # 64 MB, 16,384 pages
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, "torch._dynamo" in sys.modules)
"""


@pytest.fixture(scope="module")
def apart() -> list[str]:
    """What a process of its own tells, where nothing ran before: page faults, and whether torch's compiler is there."""
    return subprocess.run([sys.executable, "-c", APART], check=True, capture_output=True, text=True).stdout.split()


def test_memory_that_was_freed_is_taken_again_without_faults(apart: list[str]) -> None:
    assert int(apart[0]) < 8000


def test_a_model_is_built_without_torchs_compiler(apart: list[str]) -> None:
    assert apart[1] == "False"


@pytest.mark.parametrize(
    ("setting", "given", "run"), [("global_batch_tokens", 32, forward_backward), ("eval_sequences", 1, evaluate)]
)
def test_fewer_sequences_than_ranks_are_refused(setting: str, given: int, run: Callable[..., torch.Tensor]) -> None:
    config, batch = resolve({**ranks.SMALL, setting: given}), torch.zeros(0, 32)
    allowed = f"{setting}: got {given}; allowed: at least a sequence of 32 tokens for each of 2 parts of the batch"
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(ConfigError, match=allowed):
            run(nn.Identity(), batch, batch, build_mesh(config, torch.device("cpu")), config)
    finally:
        dist.destroy_process_group()
