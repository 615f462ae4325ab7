from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore

from teragpt.config import resolve
from teragpt.optimizers.muon import Muon, orthogonalize
from teragpt.optimizers.optim import Optimizer
from teragpt.parallel import materialize
from teragpt.parallelism.mesh import build_mesh
from tests.teragpt import fake, ranks
from tests.teragpt.parity import Cell, compute, difference

CPU = torch.device("cpu")
CELLS = [
    Cell(2, {}, {"optimizer": "muon"}),
    Cell(2, {"tp": 2}, {"optimizer": "muon"}),
    Cell(3, {}, {"optimizer": "muon"}),  # uneven rows
    Cell(4, {}, {"optimizer": "muon"}),
    Cell(4, {"dp_replicate": 2}, {"optimizer": "muon"}),
    Cell(4, {"tp": 2}, {"optimizer": "muon"}),
    Cell(4, {"cp": 2}, {"optimizer": "muon"}),
    Cell(2, {"pp": 2}, {"optimizer": "muon"}),
    Cell(4, {"pp": 2}, {"optimizer": "muon"}),
    Cell(4, {"pp": 2, "tp": 2}, {"optimizer": "muon"}),
]


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    return compute([*CELLS, CELLS[0].model], tmp_path_factory.mktemp("muon"))


@pytest.mark.unmeasured
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_four_updates_on_a_mesh_are_one_ranks(cell: Cell, found: dict[str, dict[str, torch.Tensor]]) -> None:
    # loss and every gradient of the fifth step tell where four updates have led
    assert difference(found[cell.model.name], found[cell.name]) <= 1e-10


@pytest.mark.parametrize("shape", [(40, 40), (80, 40), (16, 48)])
def test_all_singular_values_come_near_to_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


@pytest.mark.usefixtures("alone")
def test_updates_are_torchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve({"weight_decay": 0.3})
    torch.manual_seed(0)
    ours, theirs = nn.Linear(24, 40, bias=False), nn.Linear(24, 40, bias=False)
    theirs.load_state_dict(ours.state_dict())
    muon = Muon({"it": ours.weight}, {"it": ours.weight}, build_mesh(config, CPU), config)
    nesterov = muon.nesterov
    monkeypatch.setattr(muon, "nesterov", lambda *both: nesterov(*both).bfloat16())  # as torch does on every device
    reference = torch.optim.Muon([theirs.weight], lr=0.01, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        x = torch.randn(8, 24)
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().sum().backward()
        assert ours.weight.grad is not None
        muon.step({"it": ours.weight.grad}, torch.tensor(1.0), torch.tensor(0.01))
        reference.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


@pytest.mark.usefixtures("alone")
def test_matrices_of_blocks_have_a_momentum_and_all_else_adamws_moments() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 3)]), "head": nn.Linear(3, 2)})
    config = resolve({"optimizer": "muon"})
    state = Optimizer(model, build_mesh(config, CPU), config).state()
    adamw = [
        f"{name}.{one}" for name in ("layers.0.bias", "head.weight", "head.bias") for one in ("exp_avg", "exp_avg_sq")
    ]
    masters = [name for name, _ in model.named_parameters()]
    assert sorted(state) == sorted([*masters, "layers.0.weight.momentum", *adamw])


def test_a_run_goes_on_on_another_mesh_and_not_with_another_optimizer(tmp_path: Path) -> None:
    settings = {"optimizer": "muon", "steps": 8, "schedule": "wsd", "decay_fraction": 0.0}
    code, whole = ranks.train({**settings, "out": tmp_path / "whole"})
    assert code == 0, whole
    out = tmp_path / "run"
    code, first = ranks.train({**settings, "out": out, "steps": 4}, 2)
    assert code == 0, first
    code, output = ranks.train({"out": out, "optimizer": "adamw", "steps": 8})
    assert code == 2
    assert "optimizer: got 'adamw'; allowed: 'muon', as in the checkpoint" in output
    code, second = ranks.train(
        {name: value for name, value in {**settings, "out": out}.items() if name != "optimizer"}, 3
    )
    assert code == 0, second
    assert "optimizer muon, as in the checkpoint that it goes on from" in second
    expected, got = ranks.curve(whole), ranks.curve(first + second)
    assert got.keys() == expected.keys()
    assert all(abs(float(got[step]) - float(expected[step])) <= 2e-3 for step in got)


def test_a_step_moves_what_the_page_on_scaling_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    exchange = dist.all_to_all_single

    def counted(out: torch.Tensor, given: torch.Tensor, back: list[int], sizes: list[int], **named: Any) -> object:
        sent.append(sum(sizes) - sizes[3])
        return exchange(out, given, back, sizes, **named)

    monkeypatch.setattr(dist, "all_to_all_single", counted)
    shape = {**ranks.SMALL, "kv_heads": 2, "depth": 8, "num_tokens": 300}
    config = resolve({**shape, "global_batch_tokens": 32 * 8, "optimizer": "muon", "tp": 2})
    with fake.world(8, 3):
        model, mesh = fake.laid_out(config)
        materialize(model, config, CPU)
        optimizer = Optimizer(model, mesh, config)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.schedule(0)
        optimizer.step(torch.ones((), dtype=torch.float64))
    blocks = sum(one.numel() for name, one in model.named_parameters() if name.startswith("layers.") and one.ndim == 2)
    assert sum(sent) == 2 * (blocks // 2) // 4 * 7 // 8, "2 P / F (n - 1) / n elements, P all over tp, F 4, n 8"
