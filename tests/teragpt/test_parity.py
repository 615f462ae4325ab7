from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.teragpt.parity import Cell, compute, difference

pytestmark = [pytest.mark.timeout(900), pytest.mark.unmeasured]  # one launch computes many cells

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SHALLOW = {"depth": 1}  # a graph half as long; what lies between two layers is compiled in two other cells
CELLS = [
    Cell(1, {}, {"micro_batch": 8}),
    Cell(1, {}, {"micro_batch": 3}),
    Cell(2),
    Cell(2, {}, {"tied": False}),
    Cell(3),
    Cell(4),
    Cell(4, {"dp_replicate": 2}),
    Cell(2, {"tp": 2}),
    Cell(2, {"tp": 2}, {"tied": True, **SHALLOW}, "aot_eager"),
    Cell(2, {"tp": 2}, {"recompute": "selective"}, "aot_eager"),
    Cell(2, {}, {"recompute": "full"}, "aot_eager"),
    Cell(2, {"cp": 2}, {"tied": False, **SHALLOW}, "aot_eager"),
    Cell(2, {"cp": 2}, {"packing": "documents"}),
    Cell(2, {"tp": 2}, {"z_loss": 0.1, "tied": False}),
    Cell(2, {"tp": 2}, {"head_dim": 24, "recompute": "selective", **SHALLOW}),
    Cell(4, {"tp": 2}, {"recompute": "full"}),
    Cell(4, {"tp": 2}, {"tied": False, **SHALLOW}, "aot_eager"),
    Cell(4, {"dp_replicate": 2}, {"recompute": "selective", "tied": False, **SHALLOW}, "aot_eager"),
    Cell(4, {"tp": 2, "cp": 2}, {"tied": False, **SHALLOW}, "aot_eager"),
]
MORE = [
    Cell(2, {"tp": 2}, {"tied": False}),
    Cell(2, {"cp": 2}, {"recompute": "selective"}),
    Cell(3, {}, {"tied": False}),
    Cell(4, {"cp": 2}, {"tied": False}),
    Cell(4, {"tp": 2, "dp_replicate": 2}),
    Cell(2, {"cp": 2}, {"head_dim": 24}),
    Cell(2, {"pp": 2}, {"head_dim": 8}),
    Cell(2, {"tp": 2}, {"head_dim": 24, "optimizer": "muon"}),
]
INDUCTOR = [Cell(count, {}, {"tied": False, **SHALLOW}, "inductor") for count in (1, 2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    return compute([*CELLS, *(cell.model for cell in CELLS)], tmp_path_factory.mktemp("parity"))


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_mesh_has_one_ranks_loss_and_gradients(cell: Cell, found: dict[str, dict[str, Tensor]]) -> None:
    assert difference(found[cell.model.name], found[cell.name]) <= 1e-10


@pytest.mark.deep
def test_more_meshes_have_one_ranks_loss_and_gradients(tmp_path: Path) -> None:
    found = compute([*MORE, *(cell.model for cell in MORE)], tmp_path)
    differences = {cell.name: difference(found[cell.model.name], found[cell.name]) for cell in MORE}
    assert max(differences.values()) <= 1e-10, differences


@pytest.mark.deep  # `make parity` plays every cell so
def test_what_inductor_compiles_has_one_ranks_loss_and_gradients(compiler: str, tmp_path: Path) -> None:
    assert compiler
    model = INDUCTOR[0].model
    found = compute([model, *INDUCTOR], tmp_path)
    differences = {cell.name: difference(found[model.name], found[cell.name]) for cell in INDUCTOR}
    assert max(differences.values()) <= 1e-10, differences
