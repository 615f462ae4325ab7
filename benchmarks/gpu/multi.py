"""The trainer's meshes on every card of one host: parity with one card, scaling, checkpoints that move, a killed rank.

`python -m benchmarks.gpu.multi [PART ...] [--cards N] [--size SIZE] [--steps N] [--out FILE]` runs the parts named
(all of them unless any is), writes a JSON line for each number as it comes, and prints them as a table. Without a GPU
the cards are CPU ranks over gloo, and the size is tiny. Each part takes minutes, and stands alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.teragpt.parity import Cell, difference

GPU = torch.cuda.is_available()
LIMITS = {"fp64": 1e-10, "fp32": 1e-4}  # of a gradient against one card's
CURVE = 1e-3  # of a loss, where the mesh changed
Row = dict[str, Any]
NEVER = 10**6


def launch(cards: int, *command: str) -> list[str]:
    """The command line that runs a module on this many cards."""
    return [sys.executable, "-m", "teragpt.launch", "--standalone", "--nproc-per-node", str(cards), *command]


def train(cards: int, out: Path, settings: Mapping[str, object]) -> list[Row]:
    """Train on these cards; the points of the run's record. Raises CalledProcessError with what was printed."""
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json_text(value)}")]
    command = launch(cards, "-m", "teragpt.train", "--set", f"out={out}", *words)
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def json_text(value: object) -> str:
    """A setting's value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def meshes(cards: int) -> Iterator[dict[str, int]]:
    """The meshes of these cards: each dimension alone where it can take them all, and in pairs."""
    yield {}
    for width in (2, 4, 8):
        if cards % width == 0:
            yield {"tp": width}
            yield {"cp": width}
            if width <= 4:
                yield {"pp": width}
    if cards >= 4:
        yield {"dp_replicate": 2}
        yield {"tp": 2, "cp": 2}


def parity(cards: int, _: argparse.Namespace) -> Iterator[Row]:
    """Every mesh's gradients at steps 1 and 5 against one card's, in fp64 and (TF32 off) fp32."""
    shape = {"heads": 16, "kv_heads": 8, "dim": 256, "tied": False}
    for precision, limit in LIMITS.items():
        cells = [Cell(cards, mesh, {**shape, "precision": precision}) for mesh in meshes(cards)]
        alone = Cell(1, {}, {**shape, "precision": precision})
        with tempfile.TemporaryDirectory() as folder:
            for count, some in ((1, [alone]), (cards, cells)):
                listed = Path(folder) / f"cells-{count}.json"
                listed.write_text(json.dumps([[dict(one.mesh), dict(one.settings), one.backend] for one in some]))
                subprocess.run(launch(count, "-m", "tests.teragpt.parity", folder, str(listed)), check=True)
            found = {cell.name: torch.load(Path(folder) / f"{cell.name}.pt", "cpu") for cell in [alone, *cells]}
        for cell in cells:
            off = difference(found[alone.name], found[cell.name])
            yield {"mesh": dict(cell.mesh), "precision": precision, "off": off, "limit": limit, "holds": off <= limit}


def scaling(cards: int, asked: argparse.Namespace) -> Iterator[Row]:
    """Tokens a second on 1, 2, 4 ... cards, as much work on each, and their efficiency against one."""
    alone = 0.0
    count = 1
    while count <= cards:
        batch = asked.batch * count
        settings = {
            "size": asked.size, "steps": asked.steps, "global_batch_tokens": batch, "warmup_steps": 0,
            "eval_every": NEVER, "checkpoint_every": NEVER, "num_tokens": asked.vocabulary,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            points = [one for one in train(count, Path(folder), settings) if "tokens_per_s" in one]
        rate = statistics.median(one["tokens_per_s"] for one in points[len(points) // 2 :])
        alone = alone or rate
        yield {
            "size": asked.size, "cards": count, "tokens_per_s": round(rate),
            "efficiency": round(rate / alone / count, 3), "mfu": points[-1]["mfu"],
            "memory_gb": round(points[-1]["memory_bytes"] / 1e9, 2),
        }  # fmt: skip
        count *= 2


def checkpoints(cards: int, _: argparse.Namespace) -> Iterator[Row]:
    """A run taken up from its middle, on all cards and on fewer: its last loss beside that of the run that went on."""
    settings = {"size": "tiny", "steps": 40, "checkpoint_every": 20, "eval_every": NEVER}
    with tempfile.TemporaryDirectory() as folder:
        whole = train(cards, Path(folder) / "whole", settings)
        count = cards
        while count >= 1:
            half = Path(folder) / f"on-{count}"
            shutil.copytree(Path(folder) / "whole", half)
            for written in (half / "checkpoints").glob("step-00000040-*"):
                shutil.rmtree(written)
            off = abs(last_loss(train(count, half, settings)) - last_loss(whole))
            yield {"from": cards, "to": count, "off": off, "limit": CURVE, "holds": off <= CURVE}
            count //= 2


def last_loss(points: list[Row]) -> float:
    """The loss of a run's last step."""
    return float(next(one["loss"] for one in reversed(points) if "loss" in one))


def faults(cards: int, _: argparse.Namespace) -> Iterator[Row]:
    """kill -9 of one rank: seconds until the job has ended, and whether it names that rank."""
    with tempfile.TemporaryDirectory() as folder:
        command = launch(cards, "-m", "teragpt.train", "--set", f"out={folder}", "--set", "steps=100000")
        job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert job.stdout is not None
        while not job.stdout.readline().startswith("step 20/"):
            assert job.poll() is None
        tasks = Path(f"/proc/{job.pid}/task").iterdir()
        children = [pid for task in tasks for pid in (task / "children").read_text().split()]
        os.kill(int(children[-1]), signal.SIGKILL)
        killed = time.monotonic()
        said = job.communicate(timeout=120)[0]
        named = next((line for line in said.splitlines() if line.startswith("[launch]")), "")
        yield {"seconds": round(time.monotonic() - killed, 1), "code": job.returncode, "said": named}


PARTS: dict[str, Callable[[int, argparse.Namespace], Iterator[Row]]] = {
    "parity": parity,
    "scaling": scaling,
    "checkpoints": checkpoints,
    "faults": faults,
}


def main() -> None:
    """Run the parts, and write each number as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--cards", type=int, default=torch.cuda.device_count() or 2)
    parser.add_argument("--size", default="1.3b" if GPU else "tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=(1 << 15) if GPU else 2048, help="tokens a step on each card")
    parser.add_argument("--vocabulary", type=int, default=50304 if GPU else 2048)
    parser.add_argument("--out", type=Path, default=Path("multi.jsonl"))
    asked = parser.parse_args()
    unknown = sorted(set(asked.parts) - set(PARTS))
    if unknown:
        parser.error(f"PART: got {', '.join(unknown)}; allowed: {', '.join(PARTS)}")
    device = torch.cuda.get_device_name() if GPU else f"{os.cpu_count()} CPU cores"
    with asked.out.open("a") as record:
        for part in asked.parts or PARTS:
            for row in PARTS[part](asked.cards, asked):
                told = {"part": part, "cards": asked.cards, "device": device, "torch": torch.__version__, **row}
                record.write(json.dumps(told) + "\n")
                record.flush()
                print(part.ljust(12), "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
