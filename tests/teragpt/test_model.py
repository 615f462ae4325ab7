from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import teragpt
from teragpt.compute.ops import within
from teragpt.config import ConfigError
from teragpt.main import TeraGPT
from teragpt.sizes import SIZES


def test_the_first_users_example() -> None:
    with torch.device("meta"):  # its ten trillion operations are two minutes of a core: shapes are the whole question
        model = TeraGPT(dim=4096, depth=6, heads=8, num_tokens=20000)
        assert model(torch.randint(0, 20000, (1, 4096))).shape == (1, 4096, 20000)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
        assert model(torch.randint(0, 20000, (1, 16))).isfinite().all()


@pytest.mark.parametrize("name", ["tiny", "124m"])
def test_named_sizes_give_logits_and_a_loss(name: str) -> None:
    shape = SIZES[name]
    model = TeraGPT(shape.dim, shape.depth, shape.heads, 1000, kv_heads=shape.kv_heads, ffn=shape.ffn, tied=shape.tied)
    ids = torch.randint(0, 1000, (2, 8))
    with torch.no_grad():
        logits, loss = model(ids), model(ids, targets=ids)
    assert logits.shape == (2, 8, 1000)
    dense = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    assert torch.allclose(loss, dense, atol=1e-5)


@pytest.mark.parametrize(("dim", "heads", "kv_heads"), [(64, 5, 5), (10, 2, 2), (64, 4, 3)])
def test_heads_that_do_not_divide_are_refused(dim: int, heads: int, kv_heads: int) -> None:
    with pytest.raises(ValueError, match="heads: got"):
        TeraGPT(dim, 1, heads, 100, kv_heads=kv_heads)


def small() -> TeraGPT:
    torch.manual_seed(0)
    return TeraGPT(32, 3, 4, 100, kv_heads=2, tied=True)


@pytest.mark.parametrize("given", [-1, 100, 127, 128, 10**12])
def test_ids_that_are_no_tokens_are_refused_also_where_the_padded_table_has_a_row(given: int) -> None:
    model = TeraGPT(dim=16, depth=1, heads=2, num_tokens=100)
    ids = torch.tensor([[0, 99, given]])
    message = rf"^ids: got {given}; allowed: 0 to 99, below num_tokens$"
    for targets in (None, torch.zeros_like(ids)):
        with pytest.raises(ValueError, match=message):
            model(ids, targets=targets)
    assert model(ids[:, :2]).shape == (1, 2, 100)
    assert model(ids[:, :0]).shape == (1, 0, 100)


def test_looking_at_ids_stops_no_compiler_and_no_tracer() -> None:
    model = TeraGPT(dim=16, depth=1, heads=2, num_tokens=100)
    ids = torch.tensor([[0, 99]])
    looked = torch.compile(lambda ids: within(ids, 100) + 1, backend="eager", fullgraph=True)
    assert looked(ids + 27).tolist() == [[28, 127]]
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert model(fake.from_tensor(ids)).shape == (1, 2, 100)
    assert model.to("meta")(ids.to("meta")).shape == (1, 2, 100)


def test_a_token_sees_none_after_it() -> None:
    model, ids = small(), torch.randint(0, 100, (1, 10))
    changed = ids.clone()
    changed[0, 6] += 1
    with torch.no_grad():
        before, after = model(ids), model(changed % 100)
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-6)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-6)


def test_only_the_distance_between_positions_counts() -> None:
    model, ids = small(), torch.randint(0, 100, (1, 9))
    with torch.no_grad():
        assert torch.allclose(model(ids), model(ids, torch.arange(9) + 7), atol=1e-4)


def test_tied_models_have_no_head() -> None:
    names = dict(small().named_parameters())
    assert not any("lm_head" in name for name in names)
    assert any("lm_head" in name for name, _ in TeraGPT(32, 1, 4, 100).named_parameters())


def test_activations_take_the_dtype_that_is_asked_for_and_masters_keep_theirs() -> None:
    model = TeraGPT(32, 1, 4, 100, dtype=torch.bfloat16)
    ids = torch.randint(0, 100, (1, 9))
    assert model(ids).dtype == torch.bfloat16
    loss = model(ids, targets=ids)
    loss.backward()
    assert loss.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_the_package_gives_its_names_when_they_are_asked_for() -> None:
    assert teragpt.TeraGPT is TeraGPT
    assert teragpt.Tokenizer.__module__ == "teragpt.tokenization.tokenizer"
    assert teragpt.Trainer.__module__ == "teragpt.train"
    with pytest.raises(AttributeError, match="no attribute 'GPT'"):
        _ = teragpt.GPT


@pytest.mark.parametrize("name", ["dim", "depth", "heads", "num_tokens"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 10**12, 64.0, 2.5, "64", None, True])
def test_a_shape_that_no_model_has_is_refused_by_name_before_anything_is_made(name: str, value: Any) -> None:
    shape: dict[str, Any] = {"dim": 64, "depth": 1, "heads": 2, "num_tokens": 100, name: value}
    with pytest.raises(ConfigError, match=f"^{name}: got .*; allowed: an? (whole number from|integer)"):
        TeraGPT(**shape)


@pytest.mark.parametrize(
    "more",
    [{"ffn": -4}, {"kv_heads": 1.0}, {"rope_theta": math.nan}, {"norm_eps": -1}, {"rope_scaling": "x"}, {"tied": 1}],
)
def test_what_else_no_model_has_is_refused_by_name(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(more))}: got .*; allowed: "):
        TeraGPT(64, 1, 2, 100, **more)


def test_an_integer_of_another_library_is_one() -> None:
    dim: Any = np.int64(64)
    assert TeraGPT(dim, 1, 2, 100)(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 100)
