"""What lies in a run folder, read without torch: checkpoints, attempts that claimed it, metrics, stacks.

The layout is the trainer's (`teragpt.checkpoint`, `teragpt.reporting.metrics`). Whatever cannot be read is as good as
absent: a run folder is someone else's, may be half written, and decides nothing alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

META = "meta.json"  # a checkpoint's marker, written last
LATEST = 253_402_300_800.0  # the end of year 9999: beyond it, there is no date

MOST_STACKS = 64  # files that are shown
LARGEST_STACKS = 256 << 10  # bytes of one of them


@dataclass(frozen=True)
class Stacks:
    """A `file` of stacks in `faults/`: its `time` of writing in seconds since 1970, its text, cut where it is long."""

    file: str
    time: float
    text: str


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `time` in seconds since 1970, `size` in bytes; None where its marker does not say."""

    folder: Path
    step: int
    attempt: int
    time: float | None
    size: int | None
    ranks: int | None


def checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints that count, in the order of their steps."""
    return sorted((_described(marker) for marker in _counting(folder)), key=lambda one: (one.step, one.attempt))


def last_checkpoint(folder: Path) -> int | None:
    """The step of the newest complete checkpoint that counts; None where there is none."""
    steps = (_number(path.parent.name, 1) for path in _counting(folder))
    return max((step for step in steps if step is not None), default=None)


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder is that of one complete checkpoint."""
    return (folder / META).is_file()


def beginning(folder: Path) -> Path | None:
    """The checkpoint that a run starts from: this folder's own, or the newest that counts; None where there is none."""
    if is_checkpoint(folder):
        return folder
    counting = ((_number(one.parent.name, 1) or 0, _number(one.parent.name, 3) or 0, one) for one in _counting(folder))
    newest = max(counting, default=None)
    return newest[2].parent if newest else None


def begun_with(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint; none where its marker does not say."""
    settings = _told(checkpoint / META).get("config")
    return settings if isinstance(settings, dict) else {}


def lost(checkpoint: Path) -> str | None:
    """The file of a complete checkpoint that is missing or cut, by what is wrong; None where all are whole."""
    sizes = _told(checkpoint / META).get("files")
    for name, size in sizes.items() if isinstance(sizes, dict) else ():
        try:
            there = (checkpoint / name).stat().st_size
        except OSError as error:
            why = error.strerror or str(error)
            return f"{checkpoint / name}: {why}" if is_checkpoint(checkpoint) else None  # else it was pruned meanwhile
        if there != size:
            return f"{checkpoint / name} has {there} of {size} bytes"
    return None


def last_claim(folder: Path) -> int:
    """The highest attempt that has claimed the folder; 0 where none has."""
    owners = (_number(path.stem, 1) for path in (folder / "checkpoints").glob("owner-*.json"))
    return max((number for number in owners if number is not None), default=0)


def metric_lines(folder: Path, attempt: int, after: int) -> Iterator[dict[str, Any]]:
    """The attempt's points with a `seq` beyond `after`, in the order of the record; a torn last line is left out."""
    try:
        with (folder / "metrics.jsonl").open(encoding="utf-8", errors="replace") as lines:
            yield from _points(lines, attempt, after)
    except OSError:
        return


def stack_file(folder: Path, attempt: int) -> Path:
    """Where the stacks of an attempt that hung go, beside those that the trainer itself keeps."""
    return folder / "faults" / f"attempt-{attempt}-stacks.txt"


def stacks(folder: Path) -> list[Stacks]:
    """The newest stacks that were kept, oldest first."""
    found = [(path.lstat().st_mtime, path) for path in _regular((folder / "faults").glob("*stacks.txt"))]
    return [Stacks(path.name, time, _text(path)) for time, path in sorted(found)[-MOST_STACKS:]]


def _regular(paths: Iterable[Path]) -> Iterator[Path]:
    """Those that are files of this folder, not links to others."""
    return (path for path in paths if path.is_file() and not path.is_symlink())


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_STACKS).decode("utf-8", "replace")
    except OSError:
        return ""


def _points(lines: Iterator[str], attempt: int, after: int) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            point = json.loads(line)
        except ValueError:
            continue
        if isinstance(point, dict) and point.get("attempt") == attempt and _sound(point) and point["seq"] > after:
            yield point


def _sound(point: dict[str, Any]) -> bool:
    whole = all(isinstance(point.get(name), int) for name in ("seq", "step"))
    return whole and isinstance(point.get("time"), int | float)


def _counting(folder: Path) -> Iterator[Path]:
    """Markers of complete checkpoints that no later attempt has overruled."""
    resumed = dict(_owners(folder))
    for marker in (folder / "checkpoints").glob(f"step-*-attempt-*/{META}"):
        step, attempt = _number(marker.parent.name, 1), _number(marker.parent.name, 3)
        if step is None or attempt is None:
            continue
        if all(step <= start for later, start in resumed.items() if later > attempt):
            yield marker


def _described(marker: Path) -> Checkpoint:
    """What a marker that counts says; one that was pruned meanwhile says nothing."""
    words, told = marker.parent.name.split("-"), _told(marker)
    sizes = told.get("files")
    size = sum(sizes.values()) if isinstance(sizes, dict) and all(_whole(one) for one in sizes.values()) else None
    time, ranks = told.get("time"), told.get("ranks")
    return Checkpoint(
        folder=marker.parent,
        step=int(words[1]),
        attempt=int(words[3]),
        time=float(time) if isinstance(time, int | float) and math.isfinite(time) and 0 <= time < LATEST else None,
        size=size,
        ranks=ranks if _whole(ranks) else None,
    )


def _told(marker: Path) -> dict[str, Any]:
    try:
        meta = json.loads(marker.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _owners(folder: Path) -> Iterator[tuple[int, int]]:
    """Each attempt that claimed the folder, with the step that it resumed from."""
    for path in (folder / "checkpoints").glob("owner-*.json"):
        try:
            owner = json.loads(path.read_text("utf-8"))
            yield int(owner["attempt"]), int(owner["resumed_from"])
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _number(name: str, place: int) -> int | None:
    """A whole number among the words of a dashed name."""
    words = name.split("-")
    return int(words[place]) if len(words) > place and words[place].isdigit() else None
