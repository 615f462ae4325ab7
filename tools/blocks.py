"""Parts of the docs that are written by code: each stands between two markers, and a check fails where one is stale."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Block:
    """The text between `<!-- name -->` and `<!-- /name -->` in `file` (a path in the checkout), as it should be."""

    file: str
    name: str
    text: str

    def applied(self, page: str) -> str:
        """The page with this text in its place. Raises ValueError where the markers are missing."""
        first, last = f"<!-- {self.name} -->\n", f"<!-- /{self.name} -->"
        before, found, rest = page.partition(first)
        _, closed, after = rest.partition(last)
        if not (found and closed):
            raise ValueError(f"{self.file} has no {first.strip()} … {last}")
        return f"{before}{first}{self.text.strip()}\n{last}{after}"


def stale(blocks: Iterable[Block], root: Path = ROOT) -> list[Block]:
    """The blocks whose text differs from what stands in the files."""
    pages = {block: (root / block.file).read_text("utf-8") for block in blocks}
    return [block for block, page in pages.items() if block.applied(page) != page]


def write(blocks: Iterable[Block], root: Path = ROOT) -> None:
    """Put the texts into the files."""
    for block in blocks:
        path = root / block.file
        path.write_text(block.applied(path.read_text("utf-8")), "utf-8")


def main(blocks: Sequence[Block], arguments: Sequence[str], command: str) -> int:
    """`--write` the blocks, `--check` them (1 where one is stale), or print them."""
    if arguments == ["--write"]:
        write(blocks)
    elif arguments == ["--check"]:
        for block in (old := stale(blocks)):
            print(f"{block.file}: `{block.name}` is stale; run: python -m {command} --write", file=sys.stderr)
        return int(bool(old))
    elif arguments:
        print(f"usage: python -m {command} [--write | --check]", file=sys.stderr)
        return 2
    else:
        print("\n\n".join(block.text for block in blocks))
    return 0
