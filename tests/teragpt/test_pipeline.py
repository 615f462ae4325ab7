from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.testing._internal.distributed.fake_pg import FakeStore

from teragpt.checkpoint import published
from teragpt.config import ConfigError, resolve
from teragpt.exchange.export import export
from teragpt.inference.sample import stream
from teragpt.layout import spread
from teragpt.model import TeraGPT
from teragpt.parallel import build_model, parallelize
from teragpt.parallelism.mesh import build_mesh
from teragpt.parallelism.pipeline import BACKWARD, FORWARD, Task, timetable
from teragpt.storage import Disk
from tests.teragpt import ranks
from tests.teragpt.parity import Cell, compute, difference

Found = dict[str, torch.Tensor]

SHAPES = list(itertools.product((1, 2, 3, 4, 8), (1, 2, 3), (1, 2, 3, 7, 8, 24)))

# --- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "chunks", "micros"), [s for s in SHAPES if s[1] == 1 or s[2] % s[0] == 0])
def test_a_pipeline_runs_every_task_once_in_the_fewest_turns(count: int, chunks: int, micros: int) -> None:
    table = timetable(count, chunks, micros, training=True)
    for rank, actions in enumerate(table):
        tasks = [task for verb, task in actions if verb == "run"]
        stages = range(rank, count * chunks, count)
        whole = itertools.product((FORWARD, BACKWARD), stages, range(micros))
        assert sorted(tasks) == sorted(Task(*task) for task in whole)
    assert turns(table, count) == 2 * chunks * micros + 2 * (count - 1)  # Narayanan et al. 2021, section 2.2


@pytest.mark.parametrize(("count", "chunks", "micros"), SHAPES)
def test_an_evaluation_takes_any_number_of_micro_batches(count: int, chunks: int, micros: int) -> None:
    table = timetable(count, chunks, micros, training=False)
    assert turns(table, count) >= chunks * micros
    assert all(task.kind == FORWARD for actions in table for _, task in actions)


def turns(table: list[list[tuple[str, Task]]], count: int) -> int:
    """Turns until all is done where a task takes one, every transfer waits for the other end, and channels are one."""
    left, clock, done = [list(reversed(actions)) for actions in table], [0] * count, dict[Task, int]()
    while any(left):
        before = sum(map(len, left))
        for rank, actions in enumerate(left):
            while actions:
                verb, task = actions[-1]
                if verb != "run":
                    peer = (task.after if verb == "send" else task).stage % count
                    other = ("receive" if verb == "send" else "send", task)
                    if peer != rank and not (left[peer] and left[peer][-1] == other):
                        break
                    left[peer].pop()
                else:
                    needed = done.get(task._replace(stage=task.stage + (-1 if task.kind == FORWARD else 1)), 0)
                    done[task] = clock[rank] = max(clock[rank], needed) + 1
                actions.pop()
        assert sum(map(len, left)) < before, "the ranks wait for each other"
    return max(clock)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_stage_holds_no_more_micro_batches_than_there_are_stages_from_it_on(count: int) -> None:
    for rank, actions in enumerate(timetable(count, 1, 32, training=True)):
        held = itertools.accumulate(1 if task.kind == FORWARD else -1 for verb, task in actions if verb == "run")
        assert max(held) == count - rank


@pytest.mark.parametrize(
    ("depth", "stages", "sizes"),
    [
        (8, 4, [2, 2, 2, 2]),
        (9, 4, [2, 2, 3, 2]),
        (11, 4, [3, 3, 3, 2]),
        (126, 16, [7, *[8] * 14, 7]),
        (3, 3, [1, 1, 1]),
    ],
)
def test_layers_are_spread_evenly_and_the_last_stage_gets_no_more(depth: int, stages: int, sizes: list[int]) -> None:
    spans = spread(depth, stages)
    assert [len(span) for span in spans] == sizes
    assert [layer for span in spans for layer in span] == list(range(depth))


# --- the same numbers as one rank's ---------------------------------------------------------------------------------

FIVE = {"depth": 5}  # not the same in every stage
INTERLEAVED: dict[str, object] = {"pipeline_schedule": "interleaved"}
BOTH, TIED, UNTIED = (True, False), (True,), (False,)
MESHES: list[tuple[int, dict[str, int], dict[str, object], str, tuple[bool, ...]]] = [
    (2, {"pp": 2}, {"recompute": "full"}, "aot_eager", TIED),
    (2, {"pp": 2}, {"micro_batch": 3}, "", TIED),
    (2, {"pp": 2}, INTERLEAVED, "", BOTH),
    (2, {"pp": 2}, {"packing": "documents", "recompute": "full"}, "", TIED),
    (4, {"pp": 2}, {"gathered": "off", "micro_batch": 1}, "", TIED),
    (4, {"pp": 2}, {**INTERLEAVED, "micro_batch": 1}, "", UNTIED),
    (4, {"pp": 4}, {}, "", TIED),
    (4, {"pp": 2, "tp": 2}, {"recompute": "selective"}, "", BOTH),
]
MORE: list[tuple[int, dict[str, int], dict[str, object], str, tuple[bool, ...]]] = [
    (4, {"pp": 2}, {}, "", BOTH),
    (4, {"pp": 2, "dp_replicate": 2}, {}, "", TIED),
    (4, {"pp": 2}, {**INTERLEAVED, "micro_batch": 1}, "", TIED),
    (4, {"pp": 4}, {}, "", UNTIED),
    (4, {"pp": 2, "cp": 2}, {}, "", TIED),
]


def cells(meshes: list[tuple[int, dict[str, int], dict[str, object], str, tuple[bool, ...]]]) -> list[Cell]:
    return [
        Cell(count, mesh, {**FIVE, "tied": tied, **more}, backend)
        for count, mesh, more, backend, heads in meshes
        for tied in heads
    ]


CELLS = cells(MESHES)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Cell], Found]:
    """The numbers of a cell, from one launch for all cells of as many ranks, when the first of them is asked for."""
    folder = tmp_path_factory.mktemp("parity")
    both = [*CELLS, *(cell.model for cell in CELLS)]
    launch = cache(lambda count: compute([one for one in both if one.ranks == count], folder))
    return lambda cell: launch(cell.ranks)[cell.name]


@pytest.mark.unmeasured
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_every_pipeline_has_one_ranks_loss_and_gradients(cell: Cell, found: Callable[[Cell], Found]) -> None:
    assert difference(found(cell.model), found(cell)) <= 1e-10


@pytest.mark.deep
def test_more_pipelines_have_one_ranks_loss_and_gradients(tmp_path: Path) -> None:
    more = cells(MORE)
    seen = compute([*more, *(cell.model for cell in more)], tmp_path)
    differences = {cell.name: difference(seen[cell.model.name], seen[cell.name]) for cell in more}
    assert max(differences.values()) <= 1e-10, differences


# --- the model's parts ----------------------------------------------------------------------------------------------


@contextmanager
def world(count: int, rank: int) -> Generator[None]:
    """A process group of which this is one rank, and the others are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def names(count: int, rank: int, **settings: object) -> set[str]:
    """The parameters that a rank of a pipeline keeps."""
    config, cpu = resolve({**ranks.SMALL, "pp": count, **settings}), torch.device("cpu")
    with world(count, rank):
        model = build_model(TeraGPT, config)
        parallelize(model, build_mesh(config, cpu), config, torch.float32)
    return {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("settings", [{"depth": 5}, {"depth": 7, **INTERLEAVED}], ids=["1f1b", "interleaved"])
@pytest.mark.parametrize("tied", [True, False])
def test_ranks_share_a_models_parameters_under_their_names(tied: bool, settings: dict[str, object]) -> None:
    with torch.device("meta"):
        whole = {name for name, _ in TeraGPT(32, int(str(settings["depth"])), 2, 64, tied=tied).named_parameters()}
    first, second, last = (
        names(3, rank, tied=tied, global_batch_tokens=288, micro_batch=1, **settings) for rank in range(3)
    )
    assert first | second | last == whole
    assert first & last == ({"embed_tokens.weight"} if tied else set())
    assert not second & (first | last)
    assert {name for name in second if not name.startswith("layers.")} == set()


# --- checkpoints ----------------------------------------------------------------------------------------------------


def tensors(run: Path) -> Found:
    """All that a run's newest checkpoint holds."""
    folder = published(Disk(run))[-1].folder
    assert isinstance(folder, Disk)
    held = FileSystemReader(folder.path)
    shapes = held.read_metadata().state_dict_metadata.items()
    state = {name: torch.empty(one.size) for name, one in shapes if isinstance(one, TensorStorageMetadata)}
    load_tensors(state, storage_reader=held, no_dist=True)
    return state


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_moves_between_pipelines_to_the_last_bit(tmp_path: Path, tied: bool) -> None:
    shape = {"depth": 5, "tied": tied, "steps": 2, "checkpoint_every": 2, "eval_every": 2}
    moves: list[tuple[str, str, int, dict[str, object]]] = [
        ("trained", "", 2, {"pp": 2}),
        ("alone", "trained", 1, {}),
        ("interleaved", "alone", 4, {"pp": 2, "micro_batch": 1, **INTERLEAVED}),
    ]
    for name, start, count, mesh in moves:
        settings = {**shape, **mesh, "out": tmp_path / name, "start_from": str(tmp_path / start) if start else ""}
        code, output = ranks.train(settings, count)
        assert code == 0, output
    trained, alone, interleaved = (tensors(tmp_path / name) for name, *_ in moves)
    assert trained.keys() == alone.keys() == interleaved.keys()
    assert len(trained) == 3 * (5 * 11 + 2 + (not tied))  # with AdamW's two moments
    assert all(torch.equal(trained[name], alone[name]) for name in trained)
    assert all(torch.equal(trained[name], interleaved[name]) for name in trained)

    said = ["".join(stream(tmp_path / name, "def ", tokens=20, seed=0)) for name, *_ in moves]
    assert said[0] == said[1] == said[2]
    folders = [export(tmp_path / name, tmp_path / f"exported-{name}") for name in ("trained", "alone")]
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.unmeasured
def test_a_run_that_is_killed_goes_on_without_the_pipeline(tmp_path: Path) -> None:
    code, whole = ranks.train({"out": tmp_path / "whole"})
    assert code == 0, whole
    out = tmp_path / "run"
    saved = out / "checkpoints"
    first = ranks.train_until(lambda _: bool([*saved.glob("step-00000004-*/meta.json")]), {"out": out, "pp": 2}, 2)
    code, second = ranks.train({"out": out})
    assert code == 0, second
    assert "resumed from step" in second
    found, expected = ranks.curve(first + second), ranks.curve(whole)
    assert found.keys() == expected.keys()
    assert all(abs(float(found[step]) - float(loss)) <= 1e-3 for step, loss in expected.items())


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pp": 3}, "pp: got 3; allowed: at most depth 2"),
        ({"pp": 2, **INTERLEAVED}, "pp: got 2; allowed: pp x pipeline_chunks of at most depth 2"),
        (
            {"pipeline_chunks": 2},
            "pipeline_chunks: got 2; allowed: 2 or more with pipeline_schedule interleaved, 1 without",
        ),
        ({"pipeline_chunks": 1, **INTERLEAVED}, "pipeline_chunks: got 1; allowed: 2 or more with"),
    ],
)
def test_a_pipeline_that_the_layers_do_not_fill_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({**ranks.SMALL, **settings})


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"global_batch_tokens": 32}, "at least 2 sequences of 32 tokens for each of 1 parts of the batch"),
        ({"depth": 4, "global_batch_tokens": 96, "micro_batch": 1, **INTERLEAVED}, "at least 4 sequences of 32 tokens"),
    ],
)
def test_a_batch_that_does_not_fill_the_pipeline_is_refused(settings: dict[str, object], wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"global_batch_tokens: got .*; allowed: {wanted}.*, of which pp 2 makes"):
        names(2, 0, **settings)


def test_every_rank_exits_2_when_a_batch_does_not_fill_the_pipeline(tmp_path: Path) -> None:
    code, output = ranks.train({"out": tmp_path / "run", "pp": 2, "global_batch_tokens": 32}, 2)
    assert code == 2
    assert "global_batch_tokens: got 32; allowed: at least 2 sequences" in output
    assert "step 1/" not in output


class Bare(nn.Module):
    """A model that is no `TeraGPT`."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(8, 8)


def test_a_model_of_other_parts_is_refused() -> None:
    config = resolve({**ranks.SMALL, "pp": 2, "model": "tests.teragpt.test_pipeline:Bare"})
    with (
        world(2, 0),
        pytest.raises(
            ConfigError, match=r"pp: got 2; allowed: 1 for tests\.teragpt\.test_pipeline:Bare, which is not cut into"
        ),
    ):
        parallelize(Bare(), build_mesh(config, torch.device("cpu")), config, torch.float32)
