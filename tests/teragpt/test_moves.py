from __future__ import annotations

import itertools

import pytest

from tests.teragpt.moves import Mesh, Seen, make, name_of

pytestmark = [pytest.mark.timeout(900), pytest.mark.unmeasured]  # one launch makes many moves

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
