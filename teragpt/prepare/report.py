"""What a preparation made of its text, in numbers and as a picture: `report.json` and `report.svg` in the dataset.

Why: whoever trains on it wants to know what is in it and what is not, and why. It must not know how it was made; and
it says nothing that differs between two preparations of the same text.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from teragpt.datasets.files import MANIFEST, Manifest, load_manifest
from teragpt.prepare.documents import Dropped
from teragpt.storage import folder_at

T = TypeVar("T")
TOLD_EVERY_S = 10.0
REPORT, PICTURE = "report.json", "report.svg"
BAR, HEIGHT, MARGIN = 36, 160, 40  # pixels


def told(things: Sequence[T], what: str) -> Iterator[T]:
    """The things, one after the other, of which `what` is done; a log is told every ten seconds how many are."""
    last = time.monotonic()
    for done, thing in enumerate(things):
        if (now := time.monotonic()) - last >= TOLD_EVERY_S:
            last = now
            print(f"prepare: {what}, {done:,} of {len(things):,} done", file=sys.stderr, flush=True)
        yield thing


def untold(things: Sequence[T], what: str) -> Iterator[T]:
    """As `told`, without a word."""
    del what
    return iter(things)


class Tell(Protocol):
    """Either of the two."""

    def __call__(self, things: Sequence[T], what: str, /) -> Iterator[T]:
        """The things."""
        ...


class Tally:
    """Counts documents as they are written: how many bytes they have, and how long they are in tokens."""

    def __init__(self) -> None:
        self.bytes = 0
        self.documents = 0
        self.dropped = Dropped()
        self.lengths = np.zeros(64, np.int64)  # documents of 2^i up to 2^(i + 1) tokens

    def add(self, sizes: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> None:
        """Count documents by their bytes and their tokens, the separators included."""
        self.bytes += int(sizes.sum())
        self.documents += len(sizes)
        self.lengths += np.bincount(np.frexp(lengths)[1] - 1, minlength=64)

    def report(self, manifest: Manifest) -> dict[str, Any]:
        """The report's content."""
        tokens = sum(split.tokens for split in manifest.splits.values())
        used = np.flatnonzero(self.lengths)
        shown = range(used[0], used[-1] + 1) if len(used) else range(0)
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": tokens,
            "bytes_per_token": round(self.bytes / max(1, tokens), 4),
            "splits": {name: {"documents": s.documents, "tokens": s.tokens} for name, s in manifest.splits.items()},
            "lengths": [{"from_tokens": 1 << i, "documents": int(self.lengths[i])} for i in shown],
            "dropped": self.dropped.reasons,
        }


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write a report and its picture into a dataset's folder. Raises OSError."""
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / PICTURE).write_text(picture(report["lengths"]), "utf-8")


def read_report(out: Path | str) -> dict[str, Any]:
    """The report of the dataset at a path or URL. Raises OSError and ConfigError."""
    found: dict[str, Any] = json.loads(folder_at(out, "out").read(REPORT))
    return found


def summary(out: Path | str) -> Iterator[str]:
    """What the dataset at a path or URL, just prepared, holds, in lines. Raises OSError and ConfigError."""
    folder, report = folder_at(out, "out"), read_report(out)
    for name, split in load_manifest(folder.read(MANIFEST), f"{folder}/{MANIFEST}").splits.items():
        held = (split.documents, "document"), (split.tokens, "token"), (len(split.shards), "shard")
        yield f"{name}: " + ", ".join(f"{count:,} {what}" + "s" * (count != 1) for count, what in held)
    for reason, one in report["dropped"].items():
        yield f"dropped: {one['documents']:,}, {one['bytes']:,} bytes: {reason}"
        yield from (f"  {example}" for example in one["examples"])
    yield f"{report['bytes_per_token']:.2f} bytes a token; more in {folder}/{REPORT} and {PICTURE}"


def picture(lengths: list[Mapping[str, int]]) -> str:
    """A histogram of documents by their length, as SVG."""
    most = max((one["documents"] for one in lengths), default=1)
    width = 2 * MARGIN + BAR * max(6, len(lengths))
    foot = MARGIN + HEIGHT
    shapes = []
    for place, one in enumerate(lengths):
        left, height = MARGIN + BAR * place, round(HEIGHT * one["documents"] / most, 1)
        middle = left + BAR / 2
        shapes += [
            f'<rect x="{left + 2}" y="{foot - height}" width="{BAR - 4}" height="{height}" fill="#4a78b5"/>',
            f'<text x="{middle}" y="{foot - height - 4}">{short(one["documents"])}</text>',
            f'<text x="{middle}" y="{foot + 14}">{short(one["from_tokens"])}</text>',
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{foot + MARGIN}" font-family="sans-serif" '
        f'font-size="10" text-anchor="middle">\n<title>Documents by length</title>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{chr(10).join(shapes)}\n'
        f'<text x="{width / 2}" y="{foot + 32}">tokens of a document, at least</text>\n'
        f'<text x="{width / 2}" y="16">documents</text>\n</svg>\n'
    )


def short(number: int) -> str:
    """A number in few characters."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
