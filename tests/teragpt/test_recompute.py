from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch._subclasses.fake_tensor import FakeTensorMode

from teragpt.activations import activation_bytes
from teragpt.compute import ops
from teragpt.config import resolve
from teragpt.fp8 import Tensorwise, fp8
from teragpt.model import TeraGPT
from teragpt.recompute import PRODUCTS, recompute
from tests.teragpt import ranks
from tests.teragpt.kept import Made, bytes_a_token, compiled_bytes_a_token

MODES = ("none", "selective", "full")
SHAPE = {"dim": 48, "depth": 2, "heads": 6, "kv_heads": 2, "ffn": 80, "context": 32, "global_batch_tokens": 128}


def build(mode: str, dtype: torch.dtype = torch.float32, recompute_layers: int = 0, head_dim: int = 8) -> TeraGPT:
    config = resolve({**SHAPE, "recompute": mode, "recompute_layers": recompute_layers})
    torch.manual_seed(0)
    model = TeraGPT(48, 2, 6, 300, kv_heads=2, head_dim=head_dim, ffn=80, dtype=dtype)
    model.to(torch.promote_types(dtype, torch.float32))
    recompute(model.layers, config)
    return model


def loss_and_gradients(model: TeraGPT) -> list[Tensor]:
    ids = torch.randint(300, (2, 33), generator=torch.Generator().manual_seed(0))
    loss = model(ids[:, :-1], targets=ids[:, 1:])
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_what_is_computed_again_is_the_same_to_the_bit(mode: str, dtype: torch.dtype) -> None:
    plain, again = loss_and_gradients(build("none", dtype)), loss_and_gradients(build(mode, dtype))
    assert len(plain) == 1 + len(list(build("none").parameters()))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_the_last_blocks_keep_everything_where_fewer_recompute() -> None:
    shape, model = resolve(SHAPE).shape, build("full", torch.float64, recompute_layers=1)
    kept = [bytes_a_token(block, 48, 8, 32, torch.float64) for block in model.layers]
    assert kept == [activation_bytes(shape, mode, 8) for mode in ("full", "none")]
    plain, some = loss_and_gradients(build("none", torch.float64)), loss_and_gradients(model)
    assert all(torch.equal(one, other) for one, other in zip(plain, some, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [8, 6, 20])
def test_a_block_keeps_the_bytes_that_are_planned(mode: str, dtype: torch.dtype, width: int) -> None:
    shape = resolve({**SHAPE, "head_dim": width}).shape
    block = build(mode, dtype, head_dim=width).layers[0]
    assert bytes_a_token(block, 48, width, 32, dtype) == activation_bytes(shape, mode, dtype.itemsize)


@pytest.mark.parametrize("width", [8, 24])
def test_a_block_in_fp8_keeps_the_bytes_that_are_planned(width: int) -> None:
    config = resolve({**SHAPE, "precision": "fp8", "head_dim": width})
    block = build("none", torch.bfloat16, head_dim=width).layers[0]
    fp8([block], config, "cpu")
    for layer in block.modules():
        if isinstance(layer, Tensorwise):
            layer.amax = layer.weight.detach().abs().max()
    kept = bytes_a_token(block, 48, width, 32, torch.bfloat16)
    assert kept == activation_bytes(config.shape, "none", eight=True)
    assert kept < activation_bytes(config.shape, "none")


@pytest.mark.parametrize(("mode", "again"), [("none", 0), ("selective", 0), ("full", 3)])
def test_backward_computes_no_product_again_that_it_need_not(mode: str, again: int) -> None:
    block = build(mode, torch.float64).layers[0]  # as on GPU; oneDNN's, of fp32, save their inputs only when done
    with Made() as forward:
        y = block(*inputs(torch.float64))
    with Made() as backward:
        y.sum().backward()
    count = [sum(op in PRODUCTS for op in made.ops) for made in (forward, backward)]
    assert count == [4, 8 + again]


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    angles = torch.ones(32, 1, 4, dtype=dtype), torch.zeros(32, 1, 4, dtype=dtype)
    return torch.randn(2, 32, 48, dtype=dtype, requires_grad=True), angles


# blocks take what is no leaf, whose .grad torch's compiler looks at
compiles = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.mark.unmeasured
@compiles
@pytest.mark.parametrize("mode", MODES)
def test_compiled_blocks_keep_what_is_planned_or_less(mode: str) -> None:
    shape, block = resolve(SHAPE).shape, build(mode, torch.bfloat16).layers[0]
    torch.compiler.reset()
    # this one chooses what to keep as inductor does
    block.compile(backend="aot_eager_decomp_partition", dynamic=False, fullgraph=True)
    kept, planned = compiled_bytes_a_token(block, 48, 8, 32, torch.bfloat16), activation_bytes(shape, mode)
    assert kept == planned if mode != "none" else 0.8 * planned < kept < planned


@pytest.mark.unmeasured
@compiles
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.11's compiler does
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_blocks_compiled_with_a_gpus_kernels_keep_what_is_planned(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "kernels", import_module("teragpt.compute.kernels"), raising=False)
    monkeypatch.setattr(ops, "fused", lambda _: True)
    torch.compiler.reset()
    torch.set_default_dtype(torch.bfloat16)
    try:
        kept = kept_with_kernels(mode)
    finally:
        torch.set_default_dtype(torch.float32)
    assert kept == activation_bytes(resolve(SHAPE).shape, mode, fused=True)


def kept_with_kernels(mode: str) -> float:
    """Bytes a token; nothing is computed, since kernels want a GPU and their shapes do not."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        block = TeraGPT(48, 2, 6, 300, kv_heads=2, ffn=80).layers[0]
        recompute([block], resolve({**SHAPE, "recompute": mode}))
        block.compile(backend="aot_eager_decomp_partition", dynamic=False, fullgraph=True)
        return compiled_bytes_a_token(block, 48, 8, 32, torch.bfloat16)


@pytest.mark.unmeasured
@compiles
@pytest.mark.parametrize("mode", MODES)
def test_compiled_blocks_are_one_graph_with_the_same_gradients(mode: str) -> None:
    plain, model = loss_and_gradients(build("none", torch.float64)), build(mode, torch.float64)
    torch.compiler.reset()
    graphs: list[object] = []
    backend = counting(graphs)
    for block in model.layers:
        block.compile(backend=backend, dynamic=False, fullgraph=True)
    compiled = loss_and_gradients(model)
    assert len(graphs) == 1  # blocks are alike
    assert max(float((one - other).abs().max()) for one, other in zip(plain, compiled, strict=True)) <= 1e-10


def counting(graphs: list[object]) -> Callable[..., Any]:
    """A compiler that adds each graph it is given to `graphs`."""

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, example)

    return backend


KEPT_ON_RANKS = """
import json, os, sys, torch
import torch.distributed as dist
from teragpt.config import resolve
from teragpt.parallelism.context_parallel import context_parallel
from teragpt.launcher.environment import read_world
from teragpt.parallelism.mesh import build_mesh
from teragpt.model import TeraGPT
from teragpt.parallel import build_model, connect, materialize
from teragpt.recompute import recompute
from teragpt.parallelism.tensor_parallel import tensor_parallel
from tests.teragpt import ranks
from tests.teragpt.kept import bytes_a_token

device = connect(read_world(os.environ, 0))
kept = {}
for mesh, mode in json.loads(sys.argv[2]):
    config = resolve({**json.loads(sys.argv[1]), **mesh, "recompute": mode, "precision": "fp32"})
    model, whole = build_model(TeraGPT, config, torch.float32), build_mesh(config, device)
    tensor_parallel(model, whole)
    context_parallel(model, whole)
    recompute(model.layers, config)
    materialize(model, config, device)
    kept[f"{mesh} {mode}"] = bytes_a_token(model.layers[0], 48, 8, 32 // config.cp, torch.float32, config.tp)
if dist.get_rank() == 0:
    print("kept", json.dumps(kept))
dist.destroy_process_group()
"""


def test_ranks_that_share_matrices_or_sequences_keep_the_bytes_that_are_planned(tmp_path: Path) -> None:
    cells = [(mesh, mode) for mesh in ({"tp": 2}, {"cp": 2}) for mode in MODES]
    script = tmp_path / "kept.py"
    script.write_text(KEPT_ON_RANKS)
    code, output = ranks.run([str(script), json.dumps(SHAPE), json.dumps(cells)], 2)
    assert code == 0, output
    kept = json.loads(output.partition("kept ")[2].partition("\n")[0])
    shape = resolve(SHAPE).shape
    wanted = {f"{m} {r}": activation_bytes(shape, r, 4, m.get("tp", 1), m.get("cp", 1)) for m, r in cells}
    assert kept == wanted
