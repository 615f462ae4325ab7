from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore

from teragpt.config import resolve
from teragpt.optimizers.optim import Optimizer, learning_rate
from teragpt.parallelism.mesh import build_mesh

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_rate_warms_up_holds_and_decays(schedule: str) -> None:
    config = resolve({"steps": 100, "warmup_steps": 10, "learning_rate": 1.0, "schedule": schedule})
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)
    assert rates[80] == pytest.approx(1.0 if schedule == "wsd" else 0.2045, abs=1e-3)


def test_a_step_is_torchs_adamw_with_clipping_and_decay_on_matrices_only() -> None:
    config = resolve({"steps": 100, "warmup_steps": 0, "clip": 0.5, "learning_rate": 0.1, "weight_decay": 0.3})
    torch.manual_seed(0)
    ours, plain = nn.Linear(4, 3), nn.Linear(4, 3)
    plain.load_state_dict(ours.state_dict())
    optimizer = Optimizer(ours, build_mesh(config, CPU), config)
    reference = torch.optim.AdamW(
        [{"params": [plain.weight], "weight_decay": 0.3}, {"params": [plain.bias], "weight_decay": 0.0}],
        lr=0.1, betas=(config.beta1, config.beta2), eps=config.epsilon,
    )  # fmt: skip
    for step in range(3):
        x = torch.randn(5, 4)
        for model in (ours, plain):
            model(x).square().sum().backward()
        optimizer.schedule(step)
        summary = optimizer.reduce(torch.tensor(2.0), torch.tensor(1.0))
        expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        assert summary.tolist() == pytest.approx([2.0, float(expected), 1.0])
        optimizer.step(summary[1])
        for group in reference.param_groups:
            group["lr"] = learning_rate(step, config)
        reference.step()
        reference.zero_grad()
        assert all(parameter.grad is None for parameter in ours.parameters())
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_the_state_names_every_master_and_moment_and_shares_its_memory() -> None:
    model = nn.Linear(4, 3)
    optimizer = Optimizer(model, build_mesh(resolve({}), CPU), resolve({}))
    state = optimizer.state()
    moments = {f"{name}.{moment}" for name in ("weight", "bias") for moment in ("exp_avg", "exp_avg_sq")}
    assert set(state) == {"weight", "bias", *moments}
    assert state["weight"].data_ptr() == model.weight.data_ptr()
    state["weight.exp_avg"].fill_(3.0)
    assert float(optimizer.state()["weight.exp_avg"].sum()) == 36.0
    optimizer.resume(7)
    assert {float(optimizer.adamw.state[shard]["step"]) for shard in optimizer.shards.values()} == {7.0}


def test_what_is_kept_in_bf16_follows_fp32_and_vectors_have_masters_of_their_own() -> None:
    config = resolve({"steps": 10_000, "warmup_steps": 0, "learning_rate": 1e-4, "weight_decay": 0.0})
    half = replace(config, state_dtype="bf16")
    torch.manual_seed(0)
    models = [nn.Linear(64, 32) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].bfloat16().state_dict())
    wide, *others = [Optimizer(models[0].float(), build_mesh(config, CPU), config)] + [
        Optimizer(model.bfloat16(), build_mesh(half, CPU), half) for model in models[1:]
    ]
    for step in range(200):
        slopes = torch.randn(32, 64) + 1.0, torch.randn(32) + 1.0
        for optimizer in (wide, *others):
            for parameter, slope in zip(optimizer.parameters.values(), slopes, strict=True):
                parameter.grad = slope.to(parameter.dtype)
            optimizer.schedule(step)
            optimizer.step(torch.tensor(0.5, dtype=torch.float64))
    one, other, reference = (model.weight.detach().float() for model in (*models[1:], models[0]))
    assert torch.equal(one, other), "the dice are thrown by the step and the place"
    moved = (reference - one).mean().abs() / 200e-4
    assert moved < 0.02, "steps of less than bf16 can tell apart are not lost"
    state = others[0].state()
    assert {name: value.dtype for name, value in state.items()} == {
        name: torch.bfloat16 if name.startswith("weight") else torch.float32 for name in state
    }
    assert torch.allclose(state["bias"], wide.state()["bias"], atol=2e-3)
    assert torch.equal(models[1].bias.detach(), state["bias"].bfloat16())
    state["bias"].zero_()
    others[0].resume(7)
    assert not models[1].bias.detach().any(), "a loaded master is copied to its parameter"
