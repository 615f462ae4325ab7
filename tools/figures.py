"""The figures of docs/scaling.md: one for each dimension of the mesh, drawn from the code that lays it out.

`python -m tools.figures --write` draws them into docs/figures, `--check` fails where one is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import torch

from teragpt.compute.collectives import Group
from teragpt.layout import Kind, Layout, share
from teragpt.parallelism.context_parallel import pieces
from teragpt.parallelism.pipeline import FORWARD, Task, timetable
from tools.blocks import ROOT

FOLDER = Path("docs/figures")
RANKS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1")  # a colour for each rank
INK, FAINT, PAPER = "#222222", "#dddddd", "#ffffff"
STYLE = "font-family='Helvetica, Arial, sans-serif'"


def box(x: float, y: float, width: float, height: float, fill: str, line: str = INK) -> str:
    """A rectangle."""
    return f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' fill='{fill}' stroke='{line}'/>"


def words(x: float, y: float, said: str, anchor: str = "middle", fill: str = INK, size: int = 13) -> str:
    """A line of text."""
    return f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}' fill='{fill}' font-size='{size}'>{escape(said)}</text>"


def label(x: float, y: float, said: str) -> str:
    """A line of text over what it would cross."""
    width = 6.6 * len(said)
    return box(x - width / 2, y - 14, width, 19, PAPER, PAPER) + words(x, y, said)


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """An arrow."""
    return f"<path d='M{x:g} {y:g} L{to_x:g} {to_y:g}' stroke='{INK}' fill='none' marker-end='url(#head)'/>"


def picture(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A whole SVG."""
    head = "<marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='8' markerHeight='8' orient='auto'>"
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' {STYLE} role='img'>",
        f"<title>{escape(title)}</title>",
        f"<defs>{head}<path d='M0 0 L8 4 L0 8 z' fill='{INK}'/></marker></defs>",
        box(0, 0, width, height, PAPER, PAPER),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def slices(rows: int, ranks: int) -> list[int]:
    """Rows of a matrix on each rank."""
    return [share(Kind(1, rows), Layout(1, 1, ranks, 1, 1), rank)[1] for rank in range(ranks)]


def stack(x: float, y: float, width: float, parts: Sequence[tuple[int, str]], unit: float) -> Iterable[str]:
    """Boxes of so many rows and such colours below each other."""
    for rows, fill in parts:
        yield box(x, y, width, rows * unit, fill)
        y += rows * unit


def dp_shard() -> str:
    """Slices of every parameter: gathered before use, their gradients scattered after."""
    rows, ranks, unit = 14, 4, 8
    held = slices(rows, ranks)
    parts: list[str] = []
    for rank in range(ranks):
        x = 30 + 150 * rank
        parts += [words(x + 50, 30, f"rank {rank}"), *stack(x, 45, 100, [(held[rank], RANKS[rank])], unit)]
        parts += [words(x + 50, 95, f"rows kept: {held[rank]} of {rows}", size=11), arrow(x + 50, 105, x + 50, 150)]
        parts += stack(x, 155, 100, list(zip(held, RANKS, strict=True)), unit)
        parts += [arrow(x + 50, 275, x + 50, 320), *stack(x, 325, 100, [(held[rank], RANKS[rank])], unit)]
    parts += [label(320, 132, "all-gather, a block at a time, just before the block computes")]
    parts += [label(320, 302, "reduce-scatter of its gradients, and the gathered weights are dropped")]
    parts += [words(320, 375, "each rank updates its own rows: masters, gradients and moments exist once")]
    return picture(640, 395, "dp_shard: every parameter sliced by rows", parts)


def dp_replicate() -> str:
    """Copies of the slices: gathers stay within a copy, sums of gradients cross."""
    held, unit = slices(8, 2), 9
    parts: list[str] = []
    for copy in range(2):
        y = 40 + 175 * copy
        parts += [box(20, y - 15, 600, 110, PAPER, FAINT), words(60, y + 45, f"copy {copy}")]
        for shard in range(2):
            x = 150 + 260 * shard
            parts += [words(x + 50, y + 5, f"rank {2 * copy + shard}")]
            parts += stack(x, y + 20, 100, [(held[shard], RANKS[shard])], unit)
        parts += [arrow(255, y + 38, 405, y + 38), arrow(405, y + 48, 255, y + 48)]
        parts += [words(330, y + 30, "gather, scatter", size=11), words(330, y + 66, "(links within a copy)", size=11)]
    for shard in range(2):
        x = 200 + 260 * shard
        parts += [arrow(x - 6, 138, x - 6, 198), arrow(x + 6, 198, x + 6, 138)]
    parts += [label(330, 173, "all-reduce of a slice's gradients, once a step or micro-batch")]
    return picture(640, 325, "dp_replicate: whole copies of the slices", parts)


def tp() -> str:
    """Parts of each matrix, and of the tokens between a layer's halves."""
    parts: list[str] = []
    stations = ["tokens", "q, k, v: rows", "heads", "o: columns", "tokens"]
    for rank in range(2):
        y = 60 + 120 * rank
        parts += [words(40, y + 35, f"rank {rank}")]
        shapes = [(60, 28), (56, 40), (60, 60), (40, 56), (60, 28)]
        for at, (width, height) in enumerate(shapes):
            x = 90 + 125 * at
            offset = (60 - height) / 2
            if at in {1, 3}:  # a matrix, of which this rank has a part
                full = (56, 80) if at == 1 else (80, 56)
                parts += [box(x, y + 30 - full[1] / 2, *full, FAINT)]
                where = (
                    (x, y + 30 - full[1] / 2 + rank * height) if at == 1 else (x + rank * width, y + 30 - height / 2)
                )
                parts += [box(*where, width, height, RANKS[rank])]
            else:
                parts += [box(x, y + offset, width, height, RANKS[rank])]
            if at:
                parts += [arrow(x - 40, y + 30, x - 8, y + 30)]
    parts += [words(90 + 125 * at + 30, 30, said) for at, said in enumerate(stations)]
    parts += [words(183, 300, "gather T"), words(560, 300, "sum and scatter T")]
    parts += [arrow(183, 285, 183, 225), arrow(560, 285, 560, 225)]
    parts += [words(350, 330, "the feed-forward layer alike: gate and up by rows, down by columns; vocabulary by rows")]
    return picture(700, 345, "tp: parts of each matrix", parts)


def cp() -> str:
    """Pieces of each sequence, and which rank attends from each to which."""
    ranks, unit, parts = 4, 30, []
    count = 2 * ranks
    owner = {
        int(piece): rank
        for rank in range(ranks)
        for piece in pieces(torch.arange(count), 0, Group("", ranks, rank)).tolist()
    }
    work = [0.0] * ranks
    for query in range(count):
        for key in range(query + 1):
            parts += [box(90 + unit * key, 50 + unit * query, unit, unit, RANKS[owner[query]])]
            work[owner[query]] += 0.5 if key == query else 1
        parts += [words(82, 70 + unit * query, f"piece {query}", "end", size=11)]
    parts += [words(90 + unit * count / 2, 36, "keys and values: gathered by every rank")]
    for rank in range(ranks):
        mine = " and ".join(str(piece) for piece in sorted(owner) if owner[piece] == rank)
        parts += [box(360, 80 + 40 * rank, 18, 18, RANKS[rank])]
        parts += [words(388, 94 + 40 * rank, f"rank {rank}: pieces {mine}, {work[rank]:g} squares of work", "start")]
    parts += [words(360, 270, "one early piece and one late: equal work", "start", size=11)]
    return picture(680, 310, "cp: pieces of each sequence", parts)


def pp() -> str:
    """Which stage each rank runs for which micro-batch, turn by turn."""
    ranks, micros, unit = 4, 8, 27
    parts, turns = [], dict[Task, int]()
    left = [[task for verb, task in actions if verb == "run"] for actions in timetable(ranks, 1, micros, training=True)]
    clock = [0] * ranks
    while any(left):
        for rank, tasks in enumerate(left):
            if not tasks:
                continue
            before = tasks[0]._replace(stage=rank + (-1 if tasks[0].kind == FORWARD else 1))
            if before in turns or not 0 <= before.stage < ranks:
                turns[tasks.pop(0)] = clock[rank] = max(clock[rank], turns.get(before, 0)) + 1
    for (kind, rank, micro), turn in turns.items():
        x, y = 40 + unit * turn, 40 + unit * rank
        parts += [box(x, y, unit, unit, RANKS[0] if kind == FORWARD else RANKS[1])]
        parts += [words(x + unit / 2, y + 18, str(micro), fill=PAPER)]
    parts += [words(58, 58 + unit * rank, f"stage {rank}", "end", size=11) for rank in range(ranks)]
    parts += [box(67, 165, 18, 18, RANKS[0]), words(93, 179, "forward of a micro-batch", "start")]
    parts += [box(267, 165, 18, 18, RANKS[1]), words(293, 179, "backward", "start")]
    waits = max(clock) - 2 * micros
    parts += [words(380, 179, f"each rank waits {waits} of {max(clock)} turns", "start")]
    return picture(680, 205, "pp: micro-batches pass through the layers' stages", parts)


FIGURES = {"dp_shard": dp_shard, "dp_replicate": dp_replicate, "tp": tp, "cp": cp, "pp": pp}


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """`--write` the figures, or `--check` them: 1 where one is stale."""
    if arguments not in (["--write"], ["--check"]):
        print("usage: python -m tools.figures --write | --check", file=sys.stderr)
        return 2
    drawn = {root / FOLDER / f"{name}.svg": draw() for name, draw in FIGURES.items()}
    if arguments == ["--write"]:
        for path, text in drawn.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        return 0
    old = [path for path, text in drawn.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in old:
        print(f"{path.relative_to(root)} is stale; run: python -m tools.figures --write", file=sys.stderr)
    return int(bool(old))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
