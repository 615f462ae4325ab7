from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.teragpt.parity import Cell, compute, difference

pytestmark = pytest.mark.timeout(900)  # one launch computes many cells

if TYPE_CHECKING:
    from torch import Tensor

CELLS = [
    Cell(2, {"tp": 2}),
    Cell(2, {"tp": 2}, {"tied": False}),
    Cell(2, {"tp": 2}, {"tied": True}, "aot_eager"),
    Cell(2, {"tp": 2}, {"recompute": "selective"}, "aot_eager"),
    Cell(2, {}, {"recompute": "full"}, "aot_eager"),
    Cell(3, {}, {"tied": False}),
    Cell(2, {"cp": 2}, {"recompute": "selective"}),
    Cell(2, {"cp": 2}, {"tied": False}, "aot_eager"),
    Cell(4, {"tp": 2}, {"recompute": "full"}),
    Cell(4, {"tp": 2}, {"tied": False}, "aot_eager"),
    Cell(4, {"cp": 2}, {"tied": False}),
    Cell(4, {"dp_replicate": 2}, {"recompute": "selective", "tied": False}, "aot_eager"),
    Cell(4, {"tp": 2, "dp_replicate": 2}),
    Cell(4, {"tp": 2, "cp": 2}, {"tied": False}, "aot_eager"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    return compute([*CELLS, *(cell.model for cell in CELLS)], tmp_path_factory.mktemp("parity"))


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_mesh_has_one_ranks_loss_and_gradients(cell: Cell, found: dict[str, dict[str, Tensor]]) -> None:
    assert difference(found[cell.model.name], found[cell.name]) <= 1e-10
