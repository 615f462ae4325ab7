from __future__ import annotations

import pytest

from controlplane.clusters.base import Unavailable
from controlplane.domain.errors import NotFound
from controlplane.domain.spec import parse_spec
from controlplane.services import runs
from controlplane.services.attempts import attempt
from controlplane.services.context import Context
from controlplane.services.logs import logs, pod_name
from controlplane.services.views import RunView
from controlplane.store.moves import get_attempt
from tests.controlplane.memory_cluster import MemoryCluster

TEXT = b"one\n[rank 1] uno\ntwo \xff\n[rank 1] dos\nhal"


@pytest.fixture
def two_nodes(context: Context, memory: MemoryCluster) -> RunView:
    spec = parse_spec({"size": "tiny", "compute": {"nodes": 2, "processes_per_node": 2, "cpus_per_node": 1}})
    made, _ = runs.create_run(context, spec)
    name = made.kubernetes["name"]
    memory.written[f"{name}/{pod_name(name, 0)}"] = TEXT
    memory.written[f"{name}/{pod_name(name, 1)}"] = b"[rank 2] due\n[rank 3] tre\n"
    return made


def end(context: Context, run: RunView) -> None:
    def job(transaction: object) -> None:
        get_attempt(transaction, run.id, 1).finished_at = 1.0  # type: ignore[arg-type]

    context.store.write(job)


@pytest.mark.parametrize(
    ("rank", "lines"), [(0, ["one", "two \ufffd"]), (1, ["uno", "dos"]), (2, ["due"]), (3, ["tre"])]
)
def test_each_rank_has_its_own_lines(context: Context, two_nodes: RunView, rank: int, lines: list[str]) -> None:
    assert logs(context, two_nodes.id, rank=rank).lines == lines


def test_without_a_rank_the_first_node_shows_every_line(context: Context, two_nodes: RunView) -> None:
    assert logs(context, two_nodes.id).lines == ["one", "[rank 1] uno", "two \ufffd", "[rank 1] dos"]


def test_a_line_ends_with_a_line_feed_alone_and_is_one_ranks_whole(
    context: Context, two_nodes: RunView, memory: MemoryCluster
) -> None:
    name, odd = two_nodes.kubernetes["name"], "form\ffeed, \u2028 \x1c \x85 and a bar\r 10%\r 20%"
    memory.written[f"{name}/{pod_name(name, 0)}"] = f"one\r\n\n[rank 1] {odd}\ntwo\n".encode()
    assert logs(context, two_nodes.id, rank=0).lines == ["one", "", "two"]
    assert logs(context, two_nodes.id, rank=1).lines == [odd]
    assert logs(context, two_nodes.id, rank=1, tail=1).lines == [odd]


@pytest.mark.parametrize("rank", [4, -1])
def test_a_rank_that_is_not_there_is_not_found(context: Context, two_nodes: RunView, rank: int) -> None:
    with pytest.raises(NotFound, match="rank"):
        logs(context, two_nodes.id, rank=rank)


def test_a_reader_goes_on_at_the_offset_and_half_a_line_waits(
    context: Context, two_nodes: RunView, memory: MemoryCluster
) -> None:
    first = logs(context, two_nodes.id, rank=0)
    assert (first.offset, first.ended) == (TEXT.rindex(b"\n") + 1, False)
    assert logs(context, two_nodes.id, rank=0, offset=first.offset).lines == []
    name = two_nodes.kubernetes["name"]
    memory.written[f"{name}/{pod_name(name, 0)}"] += b"f\n"
    assert logs(context, two_nodes.id, rank=0, offset=first.offset).lines == ["half"]


def test_half_a_line_is_shown_when_the_attempt_has_ended(context: Context, two_nodes: RunView) -> None:
    end(context, two_nodes)
    last = logs(context, two_nodes.id, rank=0)
    assert last.lines[-1] == "hal"
    assert (last.offset, last.ended) == (len(TEXT), True)
    assert attempt(context, two_nodes.id).finished_at is not None


@pytest.mark.parametrize("wanted", [0, 1, 3, 5000, 50_000])
@pytest.mark.parametrize("ended", [True, False])
def test_a_tail_is_the_last_lines_of_a_log_of_any_length(
    context: Context, run: RunView, memory: MemoryCluster, wanted: int, ended: bool
) -> None:
    name = run.kubernetes["name"]
    lines = [f"step {number} | " + "x" * 40 for number in range(20_000)]
    memory.written[f"{name}/{pod_name(name, 0)}"] = "\n".join([*lines, "end" if ended else ""]).encode()
    if ended:
        end(context, run)
        lines.append("end")
    found = logs(context, run.id, tail=wanted, rank=0)
    assert found.lines == (lines[-wanted:] if wanted else [])
    assert found.offset == len(memory.written[f"{name}/{pod_name(name, 0)}"])


def test_a_log_is_read_whole_in_chunks(context: Context, run: RunView, memory: MemoryCluster) -> None:
    name = run.kubernetes["name"]
    lines = ["y" * 1000] * 2500
    memory.written[f"{name}/{pod_name(name, 0)}"] = "\n".join([*lines, "z" * (3 << 20), ""]).encode()
    end(context, run)
    read, offset = [], 0
    while True:
        chunk = logs(context, run.id, offset=offset)
        read += chunk.lines
        offset = chunk.offset
        if chunk.ended:
            break
    assert read[:2500] == lines
    assert "".join(read[2500:]) == "z" * (3 << 20)


def test_a_cluster_that_is_away_says_so(context: Context, run: RunView, memory: MemoryCluster) -> None:
    memory.fail = Unavailable("away")
    with pytest.raises(Unavailable):
        logs(context, run.id)


def test_what_was_given_up_is_told_in_its_place(context: Context, run: RunView, memory: MemoryCluster) -> None:
    name = run.kubernetes["name"]
    key = f"{name}/{pod_name(name, 0)}"
    lines = [f"step {number}" for number in range(100)]
    memory.written[key] = "\n".join([*lines, ""]).encode()
    first = memory.written[key].index(b"step 40\n")
    memory.given_up[key] = (first, 40)
    told = f"[the first 40 lines ({first} bytes) are not kept: longer than --log-keep-bytes]"
    whole = logs(context, run.id, rank=0)
    assert (whole.lines, whole.offset) == ([told, *lines[40:]], len(memory.written[key]))
    assert logs(context, run.id, rank=0, offset=first - 9).lines == [told, *lines[40:]]
    assert logs(context, run.id, rank=0, offset=first).lines == lines[40:]
    assert logs(context, run.id, tail=60).lines == lines[40:]
    assert logs(context, run.id, tail=61).lines == [told, *lines[40:]]
