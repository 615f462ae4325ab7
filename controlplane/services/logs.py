"""What ranks wrote, by rank, in whole lines, with byte offsets so that a reader can go on where it stopped.

Within a pod, rank 0 writes plain lines and every other rank's carry `[rank N] `: that is how they are told apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from controlplane.domain.errors import NotFound
from controlplane.services import runs
from controlplane.services.attempts import attempt as get_attempt
from controlplane.services.context import Context
from controlplane.services.views import AttemptView, LogChunk, RunView

BLOCK = 1 << 18  # bytes of one read
LARGEST_CHUNK = 1 << 20
PREFIX = re.compile(r"\[rank (\d+)\] ")


def logs(
    context: Context,
    run_id: str,
    *,
    attempt: int | None = None,
    rank: int | None = None,
    offset: int = 0,
    tail: int | None = None,
) -> LogChunk:
    """Lines of one rank (None: every line of the first node), from byte `offset`, or the last `tail` lines.

    One call returns at most 1 MiB of them: go on from the chunk's `offset` until it stands still. Raises NotFound for
    a run, attempt or rank that is not there.
    """
    run = runs.get(context, run_id)
    chosen, context = get_attempt(context, run.id, attempt), runs.where(context, run)
    pod = pod_of(chosen, node_of(run, rank or 0))
    ended = chosen.finished_at is not None
    if tail is not None:
        return _tail(context, chosen.name, pod, rank, tail, ended=ended)
    data, told = context.cluster.logs(chosen.name, pod, offset, LARGEST_CHUNK), list[str]()
    if not data and offset < (there := context.cluster.log_extent(chosen.name, pod)).first:
        offset, told = there.first, [there.told()]
        data = context.cluster.logs(chosen.name, pod, offset, LARGEST_CHUNK)
    full = len(data) == LARGEST_CHUNK  # there may be more behind it
    whole = data if ended and not full else data[: data.rfind(b"\n") + 1]
    if full and not whole:
        whole = data  # a line without an end; better cut than never shown
    return LogChunk([*told, *of_rank(whole, rank)], offset + len(whole), ended and not full)


def tail_of(context: Context, run: RunView, attempt: AttemptView, pod: str, wanted: int) -> list[str]:
    """The last lines of one pod, of all its ranks, with their prefixes."""
    ended = attempt.finished_at is not None
    return _tail(runs.where(context, run), attempt.name, pod, None, wanted, ended=ended).lines


def node_of(run: RunView, rank: int) -> int:
    """The node that a rank is on. Raises NotFound where the run has no such rank."""
    node: int = rank // run.resolved["processes_per_node"]
    if node >= run.resolved["nodes"] or rank < 0:
        raise NotFound("rank", str(rank))
    return node


def pod_of(attempt: AttemptView, node: int) -> str:
    """The name of the pod that is, was or will be a node of an attempt."""
    return next((pod.name for pod in attempt.pods if pod.rank == node), pod_name(attempt.name, node))


def pod_name(object_name: str, node: int) -> str:
    """The name of a node's pod before it was ever seen: as the training operator calls it."""
    return f"{object_name}-worker-{node - 1}" if node else f"{object_name}-master-0"


def of_rank(data: bytes, rank: int | None) -> Iterator[str]:
    """The lines of one rank, without its prefix; of every rank, with it, for None."""
    *lines, rest = data.decode("utf-8", "replace").split("\n")  # no other character ends a line: it has one prefix
    for each in [*lines, rest] if rest else lines:
        line = each.removesuffix("\r")
        if rank is None:
            yield line.lstrip("\0")
        elif (found := of_line(line))[0] == rank:
            yield found[1]


def of_line(line: str) -> tuple[int, str]:
    """The rank that wrote a line, and the line without its prefix, and without NULs where bytes are missing."""
    line = line.lstrip("\0")
    found = PREFIX.match(line)
    return (int(found[1]), line[found.end() :]) if found else (0, line)


def _tail(context: Context, name: str, pod: str, rank: int | None, wanted: int, *, ended: bool) -> LogChunk:
    """The last lines, read backwards from the end in growing blocks."""
    there, block = context.cluster.log_extent(name, pod), BLOCK
    while True:
        start = max(there.first, there.end - block)
        data = _read(context, name, pod, start, there.end)
        whole = data if ended else data[: data.rfind(b"\n") + 1]
        body = whole[whole.find(b"\n") + 1 :] if start > there.first else whole
        lines = [*of_rank(body, rank)]
        if len(lines) >= wanted or start == there.first:
            told = [there.told()] if there.first and len(lines) < wanted else []
            return LogChunk([*told, *lines[-wanted:]] if wanted else [], start + len(whole), ended)
        block *= 4


def _read(context: Context, name: str, pod: str, start: int, end: int) -> bytes:
    parts: list[bytes] = []
    while start < end and (part := context.cluster.logs(name, pod, start, min(LARGEST_CHUNK, end - start))):
        parts.append(part)
        start += len(part)
    return b"".join(parts)
