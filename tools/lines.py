"""The README's comparison of code sizes, from a fresh count of this tree: `python -m tools.lines [--write | --check]`.

`--measure` also runs the trainer anew, to count the lines that training the tiny size executes; without it, that one
number is taken from the README, and a test compares the two.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from coverage import CoverageData

from tools import scc
from tools.blocks import ROOT, Block, main

NAME = "lines"
CLAIM = 350  # code lines of model.py and train.py together, at most
PAPER = ("teragpt/model.py", "teragpt/train.py")
OTHERS = [  # reproduced with scc from their repositories, at the commits that their numbers are of
    ("nanoGPT", 639, "the five files of its root folder; `model.py` and `train.py` alone: 453"),
    ("gigaGPT", 565, "the six files of its root folder; `model.py` and `train.py` alone: 353"),
    ("Megatron-LM", 20_507, "the folder `megatron/` in June 2023; 160,731 in August 2026"),
]
EXECUTED = (
    "every line of `teragpt` that `train.py --size tiny` executes, from reading the corpus to the last checkpoint"
)
NOTE = """Lines of code as [scc](https://github.com/boyter/scc) counts them: comments, docstrings and blank lines are
out. (scc takes a quote inside a docstring for its end and so counts some lines of docstrings as code; by Python's own
tokenizer `model.py` and `train.py` have {tokens} lines.) `python -m tools.lines` prints this table from a fresh count,
and a test fails when it is stale."""
SHORT_RUN = ("--size", "tiny", "--steps", "4", "--checkpoint_every", "2", "--eval_every", "2", "--eval_sequences", "2")


def count(*files: str) -> int:
    """Code lines of files of the checkout."""
    return sum(len(scc.lines((ROOT / file).read_bytes())) for file in files)


def package() -> list[str]:
    """Every Python file of the package `teragpt`."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "teragpt").rglob("*.py"))


def table(executed: int) -> str:
    """The comparison, as Markdown."""
    model, train = (count(file) for file in PAPER)
    tokens = sum(len(scc.tokens((ROOT / file).read_bytes())) for file in PAPER)
    ours = [
        ("**TeraGPT**", model + train, f"`model.py` ({model}) and `train.py` ({train})"),
        ("", executed, EXECUTED),
        ("", count(*package()), "the whole package `teragpt`"),
    ]
    rows = [f"| {name} | {lines:,} | {what} |" for name, lines, what in [*OTHERS, *ours]]
    return "\n".join(["| | lines | what is counted |", "| --- | ---: | --- |", *rows, "", NOTE.format(tokens=tokens)])


def written() -> int:
    """The number of executed lines that the README states; 0 where it states none."""
    found = re.search(rf"\| ([\d,]+) \| {re.escape(EXECUTED)}", (ROOT / "README.md").read_text("utf-8"))
    return int(found[1].replace(",", "")) if found else 0


def measure() -> int:
    """Code lines of `teragpt` that a short run of the tiny size executes, the corpus's first preparation included."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        options = ["--rcfile", "/dev/null", "--source", "teragpt", "--data-file", str(data)]
        command = [sys.executable, "-m", "coverage", "run", *options, "teragpt/train.py", *SHORT_RUN]
        environment = {"PATH": "/usr/bin:/bin", "HOME": folder, "TERAGPT_CACHE": f"{folder}/cache"}
        subprocess.run([*command, "--out", f"{folder}/run"], cwd=ROOT, env=environment, check=True, capture_output=True)
        hits = CoverageData(str(data))
        hits.read()
        return sum(len(executed(ROOT / file, set(hits.lines(str(ROOT / file)) or ()))) for file in package())


def executed(file: Path, hits: set[int]) -> set[int]:
    """Code lines of the statements of which a line was hit; a head counts apart from its body."""
    text = file.read_bytes()
    spans = [set(range(first, last + 1)) for first, last in heads(ast.parse(text))]
    run = {line for span in spans if span & hits for line in span}
    return run & scc.lines(text)


def heads(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """First and last line of every statement, without the statements inside it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            body = getattr(node, "body", None)
            start = node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno
            first = min([start, *(each.lineno for each in getattr(node, "decorator_list", []))])
            last = body[0].lineno - 1 if body else getattr(node, "end_lineno", start)
            yield first, max(start, last)


if __name__ == "__main__":
    fresh = "--measure" in sys.argv
    rest = [word for word in sys.argv[1:] if word != "--measure"]
    block = Block("README.md", NAME, table(measure() if fresh else written()))
    sys.exit(main([block], rest, "tools.lines"))
