"""Rounds of chaos for the trainer: a run is struck by a signal, goes on, and ends as if nothing had been."""

from __future__ import annotations

import functools
import json
import random
import re
import shutil
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from teragpt.checkpoint import META, published
from teragpt.storage import Disk
from tests.teragpt import ranks
from tests.teragpt.struck import MADE, TOLD, Strike

STEPS, EVERY = 6, 2
SETTINGS = {
    **ranks.SMALL, "depth": 1, "kv_heads": 2, "steps": STEPS, "checkpoint_every": EVERY, "keep_last": STEPS,
    "eval_every": STEPS,
}  # fmt: skip
MESHES: dict[str, tuple[int, dict[str, int]]] = {
    "FSDP 2": (2, {}),
    "TP 2": (2, {"tp": 2}),
    "CP 2": (2, {"cp": 2}),
    "PP 2": (2, {"pp": 2, "depth": 2}),
    "HSDP 2 x 2": (4, {"dp_replicate": 2}),
}
CALLS = {"save": 400_000, "load": 70_000, "compile": 3_000_000, "step": 120_000}  # about as many as a run makes inside
TRIES = 4
CODES = {signal.SIGTERM: {0, 143}, signal.SIGKILL: {1, 137}}  # of a job; 0: its last step was behind it


@dataclass(frozen=True)
class Round:
    """What is played: a mesh by its name, and what strikes."""

    mesh: str
    strike: Strike


def drawn(seed: int, number: int) -> Round:
    """The round of a number. Any 20 that follow one another have each phase on each mesh; any 8 each by each signal."""
    chance = random.Random(f"{seed} {number}")
    mesh, phase = list(MESHES)[number % len(MESHES)], list(CALLS)[number % len(CALLS)]
    sent = list(CODES)[(number + number // len(CALLS)) % len(CODES)]
    rank, call = chance.randrange(MESHES[mesh][0]), chance.randrange(1, CALLS[phase])
    return Round(mesh, Strike(phase, int(sent), chance.random() < 1 / 2, rank, call))


def play(game: Round, folder: Path, whole: Path) -> str:
    """Play a round in an empty folder, beside the whole run of its mesh; returns what struck, and where."""
    out, strike = folder / "run", game.strike
    for _ in range(TRIES):
        shutil.rmtree(out, ignore_errors=True)
        if strike.phase == "load":
            half_of(whole, out)
        code, said = launch(game.mesh, out, strike)
        if found := [line for line in said.splitlines() if TOLD in line]:
            break
        assert code == 0, said
        made = re.search(f"{MADE}(\\d+)", said)
        assert made, said
        strike = replace(strike, call=1 + strike.call % int(made[1]))
    else:
        raise AssertionError(f"the signal never fell inside a {strike.phase}")
    assert code in CODES[signal.Signals(strike.number)], said
    after = newest(out)
    if strike.number == signal.SIGTERM:
        assert after == max(ranks.curve(said), default=after), "a run that was told to stop has lost steps"
    code, said = launch(game.mesh, out)
    assert code == 0, said
    assert (f"resumed from step {after} | " in said) if after else ("resumed" not in said), said
    same(out, whole, exact=strike.phase != "compile")
    return f"{game.mesh}: {found[0]}{', to every rank' if strike.everyone else ''}; went on from step {after}"


def launch(mesh: str, out: Path, strike: Strike | None = None) -> tuple[int, str]:
    """Train on a mesh, struck or not: the exit code and the output."""
    count, settings = MESHES[mesh]
    compiled = {"compile": "on"} if strike and strike.phase == "compile" else {}
    words = ranks.arguments({**SETTINGS, **settings, **compiled, "out": out})
    program = ["tests.teragpt.struck", json.dumps(asdict(strike))] if strike else ["teragpt.train"]
    return ranks.run(["-m", *program, *words], count)


@functools.cache
def whole_run(mesh: str, folder: Path) -> Path:
    """The folder of an uninterrupted run."""
    code, said = launch(mesh, folder / mesh)
    assert code == 0, said
    return folder / mesh


def half_of(whole: Path, out: Path) -> None:
    """Copy a run as it was before its last checkpoint."""
    shutil.copytree(whole, out)
    for path in out.glob(f"checkpoints/step-{STEPS:08d}-*"):
        shutil.rmtree(path)


def newest(out: Path) -> int:
    """The step of the newest whole checkpoint: its marker is there, and every file that the marker lists; else 0."""
    steps = [0]
    for marker in out.glob(f"checkpoints/step-*/{META}"):
        meta = json.loads(marker.read_text())
        for name, size in meta["files"].items():
            assert (marker.parent / name).stat().st_size == size, f"{marker} lies about {name}"
        steps.append(meta["step"])
    return max(steps)


def curve(out: Path) -> Mapping[int, float]:
    """The loss of each step, as its last attempt had it."""
    points = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {point["step"]: point["loss"] for point in points if "loss" in point}


def same(out: Path, whole: Path, *, exact: bool) -> None:
    """A run that went on has the whole one's curve; where it is `exact`, its last checkpoint has the same bytes."""
    found, expected = curve(out), curve(whole)
    assert list(found) == list(expected)
    assert all(abs(found[step] - loss) <= (0 if exact else 1e-4) for step, loss in expected.items()), (found, expected)
    last, lasts = (published(Disk(one))[-1] for one in (out, whole))
    assert last.step == lasts.step == STEPS
    for name in lasts.meta["files"] if exact else ():
        assert not name.endswith(".distcp") or last.folder.read(name) == lasts.folder.read(name), name
