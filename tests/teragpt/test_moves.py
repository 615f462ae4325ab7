from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

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
ROUND = [move for one, next_ in itertools.pairwise([*MESHES, MESHES[0]]) for move in ((one, next_), (next_, one))]
REST = [move for move in itertools.product(MESHES, MESHES) if move not in ROUND]

Moves = Callable[[bool], dict[str, Seen]]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Moves:
    """What was seen of the moves of the round, or of the rest, once they are asked for, and of the runs before."""
    folder = tmp_path_factory.mktemp("moves")
    before = make([(mesh, None) for mesh in MESHES], folder)
    return cache(lambda rest: {**before, **make(REST if rest else ROUND, folder)})


@pytest.mark.parametrize(("reader", "writer"), ROUND, ids=lambda mesh: mesh.name)
def test_a_checkpoint_moves_from_mesh_to_mesh_and_back(reader: Mesh, writer: Mesh, moved: Moves) -> None:
    goes_on(reader, writer, moved(False))


@pytest.mark.deep
@pytest.mark.parametrize(("reader", "writer"), REST, ids=lambda mesh: mesh.name)
def test_a_checkpoint_moves_to_any_mesh(reader: Mesh, writer: Mesh, moved: Moves) -> None:
    goes_on(reader, writer, moved(True))


def goes_on(reader: Mesh, writer: Mesh, seen: dict[str, Seen]) -> None:
    """A run goes on on the reader as it did on the writer."""
    before, after = seen[writer.name], seen[name_of(reader, writer)]
    assert after.state == before.state, "bits of masters and moments"
    assert after.batch == before.batch, "tokens"
    assert after.losses == pytest.approx(before.losses, rel=1e-3)
    if reader == writer:
        assert after.losses == before.losses
