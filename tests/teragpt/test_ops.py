from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from teragpt.compute.ops import few, linear, linear_cross_entropy, norm_rotary, rms_norm, rotary, swiglu


def numbers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def rotated(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """RoPE as the paper states it: pairs of numbers turned as complex ones."""
    half = x.size(-1) // 2
    pairs = torch.complex(x[..., :half], x[..., half:])
    angles = torch.outer(positions.double(), theta ** -(torch.arange(half).double() / half))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def test_linear_is_the_projections_side_by_side() -> None:
    x, one, other = numbers(2, 3, 4), numbers(5, 4), numbers(6, 4)
    assert torch.allclose(linear(x, one, other), torch.cat([x @ one.T, x @ other.T], dim=-1))
    assert linear(x.bfloat16(), one).dtype == torch.bfloat16


@pytest.mark.parametrize("out", [16, 96])
@pytest.mark.parametrize("rows", [8, 64])
def test_products_on_cpu_have_pytorchs_values_and_gradients(rows: int, out: int) -> None:
    x, weight = (value.detach().float().requires_grad_() for value in (numbers(2, rows, 32), numbers(out, 32)))
    slope = numbers(out, rows, 2).detach().float().transpose(0, 2)  # as attention's gradients come
    exact = F.linear(x.double(), weight.double())
    given = torch.autograd.grad(linear(x, weight), (x, weight), slope)
    wanted = torch.autograd.grad(exact, (x, weight), slope.double())
    assert torch.allclose(linear(x, weight).double(), exact, atol=1e-4)
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in zip(given, wanted, strict=True))
    with torch.no_grad():
        assert torch.equal(linear(x, weight), linear(x.requires_grad_(), weight))


def test_rms_norm_is_pytorchs() -> None:
    x, weight = numbers(2, 3, 8), numbers(8)
    assert torch.allclose(rms_norm(x, weight, 1e-6), F.rms_norm(x, (8,), weight, 1e-6))
    assert gradcheck(lambda *inputs: rms_norm(inputs[0], inputs[1], 1e-6), (x, weight))


def test_norms_in_bf16_are_computed_wider_and_rounded_once() -> None:
    """A scale that is itself rounded is off by up to 0.4%, for all of a row alike."""
    torch.manual_seed(0)
    x = torch.randn(2, 32, 4 * 64).to(torch.bfloat16).requires_grad_()
    weight = torch.ones(4 * 64, requires_grad=True)
    heads = torch.ones(64)
    rope = rotary(torch.zeros(32), 64, 100.0, torch.bfloat16)  # turns nothing
    rows, wide = x.unflatten(-1, (4, 64)), x.detach().double()
    for y, exact in (
        (rms_norm(x, weight, 1e-6), F.rms_norm(wide, (4 * 64,), None, 1e-6)),
        (norm_rotary(x, heads, heads, rope, 1, 1e-6)[0], F.rms_norm(rows[..., :2, :].double(), (64,), None, 1e-6)),
    ):
        assert y.dtype == torch.bfloat16
        scale = (y.detach().double() * exact.detach()).sum(-1) / exact.detach().square().sum(-1)
        assert float((scale - 1).abs().mean()) < 1e-3
        y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert weight.grad is not None
    assert torch.allclose(
        weight.grad, 2 * F.rms_norm(wide, (4 * 64,), None, 1e-6).square().sum((0, 1)).float(), rtol=0.02
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_queries_and_keys_are_normalised_and_rotated(kv_heads: int) -> None:
    qkv, q_weight, k_weight = numbers(2, 5, (4 + 2 * kv_heads) * 6), numbers(6), numbers(6)
    positions = torch.tensor([3, 4, 5, 6, 9])
    rope = rotary(positions, 6, 100.0, torch.float64)
    q, k, v = norm_rotary(qkv, q_weight, k_weight, rope, kv_heads, 1e-6)
    heads = torch.unflatten(qkv, -1, (-1, 6))
    plain_q, plain_k, plain_v = heads.split([4, kv_heads, kv_heads], dim=2)
    assert torch.allclose(q, rotated(F.rms_norm(plain_q, (6,), q_weight, 1e-6), positions, 100.0), atol=1e-6)
    assert torch.allclose(k, rotated(F.rms_norm(plain_k, (6,), k_weight, 1e-6), positions, 100.0), atol=1e-6)
    assert torch.equal(v, plain_v)
    assert gradcheck(
        lambda *inputs: norm_rotary(inputs[0], inputs[1], inputs[2], rope, kv_heads, 1e-6), (qkv, q_weight, k_weight)
    )


def test_swiglu_is_silu_of_the_gate_times_up() -> None:
    joint = numbers(2, 3, 8)
    gate, up = joint.chunk(2, dim=-1)
    assert torch.allclose(swiglu(joint), F.silu(gate) * up)
    assert gradcheck(swiglu, (joint,))


@pytest.mark.parametrize("tokens", [1, 16, 50])
def test_chunked_cross_entropy_is_the_dense_one(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teragpt.compute.ops.LOGITS_CHUNK", 1)  # the smallest chunks: 16 tokens
    x, weight = numbers(1, tokens, 6), numbers(11, 6)
    targets = torch.arange(tokens).remainder(11).unsqueeze(0)
    dense = F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten())
    loss = linear_cross_entropy(x, weight, targets, 11)
    assert torch.allclose(loss, dense)
    for mine, plain in zip(
        torch.autograd.grad(loss * 3, (x, weight)), torch.autograd.grad(dense * 3, (x, weight)), strict=True
    ):
        assert torch.allclose(mine, plain)


def test_the_z_loss_is_in_the_gradients_and_not_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teragpt.compute.ops.LOGITS_CHUNK", 1)
    x, weight = numbers(2, 20, 6), numbers(11, 6)
    targets = torch.arange(40).remainder(11).view(2, 20)
    logits = (x @ weight.T).flatten(0, 1)
    plain = F.cross_entropy(logits, targets.flatten())
    penalized = plain + 0.3 * logits.logsumexp(1).square().mean()
    loss = linear_cross_entropy(x, weight, targets, 11, z=0.3)
    assert torch.allclose(loss, plain)
    expected = torch.autograd.grad(penalized, (x, weight))
    found = torch.autograd.grad(loss, (x, weight))
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(found, expected, strict=True))


def test_cross_entropy_without_gradients_and_in_bf16() -> None:
    x, weight = numbers(2, 8, 6), numbers(11, 6)
    targets = torch.zeros(2, 8, dtype=torch.long)
    with torch.no_grad():
        exact = linear_cross_entropy(x, weight, targets, 11)
    half = x.detach().bfloat16().requires_grad_()
    loss = linear_cross_entropy(half, weight.float(), targets, 11)
    torch.autograd.backward(loss)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 0.05
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_few_rows_that_nothing_learns_from_are_what_many_are() -> None:
    x, weights = numbers(1, 1, 8), [numbers(rows, 8) for rows in (8, 8, 16)]
    rope = rotary(torch.tensor([5]), 4, 10_000.0, torch.float64)
    norm, heads = numbers(8), numbers(4)

    def computed() -> list[Tensor]:
        qkv = linear(x, *weights)
        return [qkv, rms_norm(x, norm, 1e-6), *norm_rotary(qkv, heads, heads, rope, 2, 1e-6)]

    learned = computed()
    assert not few(x)
    with torch.inference_mode():
        assert few(x)
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(computed(), learned, strict=True))
