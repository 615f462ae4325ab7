from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from teragpt.checkpoint import published
from teragpt.storage import Disk
from tests.teragpt import ranks
from tests.teragpt.moves import Mesh, Seen, make, name_of

pytestmark = pytest.mark.timeout(900)  # one launch makes many moves

MESHES = [
    Mesh("one", 1),
    Mesh("fsdp 2", 2),
    Mesh("tp 2", 2, (("tp", 2),)),
    Mesh("cp 2", 2, (("cp", 2),)),
    Mesh("fsdp 2 tp 2", 4, (("tp", 2),)),
    Mesh("hsdp 2 2", 4, (("dp_replicate", 2),)),
]
MOVES = list(itertools.product(MESHES, MESHES))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    folder = tmp_path_factory.mktemp("moves")
    return {**make([(mesh, None) for mesh in MESHES], folder), **make(MOVES, folder)}


@pytest.mark.parametrize(("reader", "writer"), MOVES, ids=lambda mesh: mesh.name)
def test_a_checkpoint_moves_to_any_mesh(reader: Mesh, writer: Mesh, seen: dict[str, Seen]) -> None:
    before, after = seen[writer.name], seen[name_of(reader, writer)]
    assert after.state == before.state, "bits of masters and moments"
    assert after.batch == before.batch, "tokens"
    assert after.losses == pytest.approx(before.losses, rel=1e-3)
    if reader == writer:
        assert after.losses == before.losses


def test_a_tensor_parallel_run_killed_inside_a_save_goes_on_to_the_same_curve(tmp_path: Path) -> None:
    settings = {"tp": 2, "kv_heads": 2, "steps": 9, "checkpoint_every": 3, "dim": 128, "ffn": 512}
    code, whole = ranks.train({**settings, "out": tmp_path / "whole"}, 2)
    assert code == 0, whole
    out = tmp_path / "run"
    checkpoints = out / "checkpoints"
    printed = ranks.train_until(
        lambda _: bool([*checkpoints.glob("step-00000003-*/meta.json")] and ranks.torn(out)),
        {**settings, "out": out},
        2,
    )
    assert ranks.torn(out), "the kill fell outside of a save"
    assert published(Disk(out))
    code, output = ranks.train({**settings, "out": out}, 2)
    assert code == 0, output
    assert "resumed from step" in output
    assert ranks.curve(printed + output) == ranks.curve(whole)
