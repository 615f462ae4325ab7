"""The trainer's meshes on every card of one host: parity with one card, scaling, checkpoints that move, a killed rank.

`python -m benchmarks.gpu.multi [PART ...] [--cards N] [--titan FOLDER] [--out FILE]` runs the parts named (all of them
unless any is), writes a JSON line for each number as it comes, and prints them as a table. FOLDER is one on whose path
torchtitan (0.2.2) and torchao lie; without it, it is not measured. Without a GPU the cards are CPU ranks over gloo, and
the size is tiny. Each part takes minutes, and stands alone; what fails in one is a row of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from teragpt.config import resolve
from teragpt.plan import cluster_of, plan
from teragpt.plan.choice import Option
from teragpt.plan.hardware import known
from tests.teragpt.matrix import LIMITS as WITHIN
from tests.teragpt.parity import Cell, difference

GPU = torch.cuda.is_available()
LIMITS = {**WITHIN, "fp8": (5e-3, float("inf"))}  # of losses and gradients against one card's; fp8: 0.5%
KINDS = {
    **{precision: (precision, "") for precision in ("fp64", "fp32", "bf16", "fp8")},
    **({"inductor": ("bf16", "inductor")} if GPU else {}),
}
STEPS = {"bf16": 20, "fp8": 20}
SHAPE = {"heads": 8, "kv_heads": 8, "dim": 128, "ffn": 128, "tied": False}  # what eight ranks of any kind divide
CURVE = 1e-3  # of a loss, where the mesh changed
MEMORY, TIME = 0.05, 0.10  # what a plan may be off by
EFFICIENT, AHEAD, EXPOSED, STALL, ENDED = 0.95, 1.1, 0.05, 1.0, 30.0
PATIENCE = 540  # seconds of one launch
Row = dict[str, Any]
NEVER = 10**6


def launch(cards: int, *command: str) -> list[str]:
    """The command line that runs a module on this many cards."""
    return [sys.executable, "-m", "teragpt.launch", "--standalone", "--nproc-per-node", str(cards), *command]


def run(cards: int, *command: str) -> str:
    """What such a launch prints. Raises RuntimeError with the end of it where it fails."""
    pipe = subprocess.PIPE
    done = subprocess.run(launch(cards, *command), check=False, stdout=pipe, stderr=subprocess.STDOUT, timeout=PATIENCE)
    said = done.stdout.decode(errors="replace")
    if done.returncode:
        raise RuntimeError(f"code {done.returncode}: {said[-1500:]}")
    return said


def measured(cards: int, kind: str, settings: Mapping[str, object], **more: object) -> Row:
    """A job of `multi_worker` on so many cards."""
    job = json.dumps({"kind": kind, "settings": settings, **more})
    found: Row = json.loads(run(cards, "-m", "benchmarks.gpu.multi_worker", job).splitlines()[-1])
    return found


def train(cards: int, out: Path, settings: Mapping[str, object]) -> list[Row]:
    """Train on these cards; the points of the run's record."""
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    run(cards, "-m", "teragpt.train", "--set", f"out={out}", *words)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def counts(cards: int) -> list[int]:
    """1, 2, 4 ... cards."""
    return [1 << power for power in range(cards.bit_length()) if 1 << power <= cards]


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


def parity(cards: int, asked: argparse.Namespace) -> Iterator[Row]:
    """Every mesh beside one card: gradients at steps 1 and 5 in fp64 and (TF32 off) fp32, losses in bf16 and fp8.

    On GPUs bf16 goes through inductor too.
    """
    for kind in asked.kinds or KINDS:
        precision, backend = KINDS[kind]
        settings = {**SHAPE, "depth": 4, "precision": precision, "steps": STEPS.get(precision, 5)}
        cells = [Cell(cards, mesh, settings, backend) for mesh in meshes(cards)]
        alone = Cell(1, {}, settings, backend)
        with tempfile.TemporaryDirectory() as folder:
            for count, some in ((1, [alone]), (cards, cells)):
                listed = Path(folder) / f"cells-{count}.json"
                listed.write_text(json.dumps([[dict(one.mesh), dict(one.settings), one.backend] for one in some]))
                run(count, "-m", "tests.teragpt.parity", folder, str(listed))
            found = {cell.name: torch.load(Path(folder) / f"{cell.name}.pt", "cpu") for cell in [alone, *cells]}
        for cell in cells:
            pair = found[alone.name], found[cell.name]
            off = difference(*pair, " loss"), difference(*pair)
            holds = all(one <= limit for one, limit in zip(off, LIMITS[precision], strict=True))
            told = {"mesh": dict(cell.mesh), "precision": precision, "backend": backend or "eager"}
            yield {**told, "loss": off[0], "gradients": off[1], "holds": holds}


def works(asked: argparse.Namespace) -> dict[str, Row]:
    """The settings of what is measured, by name; the rest of a layout is the plan's."""
    if not GPU:
        return {"tiny": {"size": "tiny", "micro_batch": 8}}
    small = {"size": "8b", "optimizer": "adamw", "num_tokens": 128_256, "micro_batch": 1, "state_dtype": "bf16"}
    every = {
        "1.3b": {"size": "1.3b", "optimizer": "adamw", "num_tokens": 32_000, "micro_batch": 8},
        "8b": small,  # on one card fp32 masters and moments would not fit: bf16 state everywhere
        "8b-fp8": {**small, "precision": "fp8"},
    }
    return {name: settings for name, settings in every.items() if name in (asked.works or every)}


def scaling(cards: int, asked: argparse.Namespace) -> Iterator[Row]:
    """Tokens a second on 1, 2, 4 ... cards beside one, as much work on each and as much in all, torchtitan, the plan.

    Of FSDP on all cards the time is told in which ranks only communicate.
    """
    for name, settings in works(asked).items():
        batch, rates = at_once(settings), dict[tuple[str, int], float]()
        for kind, count in itertools.product(("weak", "strong"), counts(cards)):
            given = {**settings, "global_batch_tokens": batch * (count if kind == "weak" else cards)}
            if (kind, count) == ("strong", cards):  # as much work as weak scaling's
                found = {"tokens_per_s": rates["weak", cards]}
            else:
                found = planned(given, count, asked, f"{name}-{kind}")
            rates[kind, count] = found["tokens_per_s"]
            efficiency = rates[kind, count] / rates[kind, 1] / count
            limit = {"limit": EFFICIENT, "exposed_limit": EXPOSED} if (kind, count) == ("weak", cards) else {}
            yield {"work": name, "arm": kind, "on": count, **found, "efficiency": efficiency, **limit}
        if asked.titan:
            given = laid_out({**settings, "global_batch_tokens": batch * cards}, cards)[0]
            found = measured(cards, "titan", given, steps=asked.steps, titan=str(asked.titan))
            ratio = rates["weak", cards] / found["tokens_per_s"]
            yield {"work": name, "arm": "titan", "on": cards, **found, "ours_to_it": ratio, "limit": AHEAD}


def widths(cards: int, asked: argparse.Namespace) -> Iterator[Row]:
    """Every mesh of the same cards: two micro-batches of each data-parallel rank, times the stages of a pipeline."""
    for name, settings in works(asked).items():
        for mesh in meshes(cards):
            if asked.meshes and (",".join(f"{key}={size}" for key, size in mesh.items()) or "none") not in asked.meshes:
                continue
            data = cards // (mesh.get("tp", 1) * mesh.get("cp", 1) * mesh.get("pp", 1))
            tokens = at_once(settings) * data * 2 * mesh.get("pp", 1)
            found = planned({**settings, **mesh, "global_batch_tokens": tokens}, cards, asked, f"{name}-{mesh}")
            yield {"work": name, "mesh": mesh, "tokens": tokens, **found}


def at_once(settings: Mapping[str, object]) -> int:
    """Tokens of a micro-batch."""
    config = resolve(settings)
    return config.micro_batch * config.context


def laid_out(settings: Mapping[str, object], cards: int) -> tuple[Row, Option | None]:
    """Settings with what the plan chooses beside the mesh, which is given, and what it expects of this GPU."""
    mesh = {"dp_replicate": 1, "tp": 1, "cp": 1, "pp": 1, **settings}
    gpu = known(torch.cuda.get_device_name()) if GPU else None
    if gpu is None:
        return mesh, None
    best = plan(mesh, cluster_of(gpu, cards), exactly=True).best
    return {**mesh, **best.settings}, best


def planned(settings: Mapping[str, object], cards: int, asked: argparse.Namespace, name: str) -> Row:
    """What a step takes, and what was planned of it."""
    given, best = laid_out(settings, cards)
    trace = {"trace": str(asked.out.with_suffix(f".{name}.json"))} if asked.trace else {}
    found = measured(cards, "ours", given, steps=asked.steps, **trace)
    if best is None:
        return found
    time_off, memory_off = best.seconds * 1000 / found["step_ms"] - 1, best.memory.peak / found["gb"] / 1e9 - 1
    layout = {key: given[key] for key in ("recompute", "recompute_layers", "gathered")}
    told = {"planned_ms": best.seconds * 1000, "time_off": time_off, "memory_off": memory_off}
    return {**layout, **found, **told, "plan_holds": abs(time_off) <= TIME and abs(memory_off) <= MEMORY}


def checkpoints(cards: int, asked: argparse.Namespace) -> Iterator[Row]:
    """What a save costs; a run taken up from its middle, on all cards and on fewer, beside the one that went on."""
    for name, settings in works(asked).items():
        if "8b" not in name:
            given = {**settings, "global_batch_tokens": at_once(settings) * cards}
            found = measured(cards, "save", given, steps=asked.steps)
            yield {"work": name, **found, "limit": STALL, "holds": max(found["stalls_s"]) <= STALL}
    settings = {"size": "tiny", "steps": 40, "checkpoint_every": 20, "eval_every": NEVER, "check_up": "off"}
    with tempfile.TemporaryDirectory() as folder:
        whole = train(cards, Path(folder) / "whole", settings)
        for count in reversed(counts(cards)):
            half = Path(folder) / f"on-{count}"
            shutil.copytree(Path(folder) / "whole", half)
            for written in (half / "checkpoints").glob("step-00000040-*"):
                shutil.rmtree(written)
            off = abs(last_loss(train(count, half, settings)) / last_loss(whole) - 1)
            yield {"from": cards, "to": count, "off": off, "limit": CURVE, "holds": off <= CURVE}


def last_loss(points: list[Row]) -> float:
    """The loss of a run's last step."""
    return float(next(one["loss"] for one in reversed(points) if "loss" in one))


def faults(cards: int, _: argparse.Namespace) -> Iterator[Row]:
    """kill -9 of the last rank: seconds until the job ends, the rank it names, and the step that it goes on from."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "teragpt.train", "--set", f"out={folder}", "--set", "checkpoint_every=10"]
        job = subprocess.Popen(
            launch(cards, *words, "--set", "steps=100000"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert job.stdout is not None
        for line in job.stdout:
            if line.startswith("step 25/"):
                break
        else:
            raise RuntimeError(f"code {job.wait()} before step 25")
        tasks = Path(f"/proc/{job.pid}/task").iterdir()
        children = [pid for task in tasks for pid in (task / "children").read_text().split()]
        os.kill(int(children[-1]), signal.SIGKILL)
        killed = time.monotonic()
        said = job.communicate(timeout=120)[0]
        took = time.monotonic() - killed
        named = next((line for line in said.splitlines() if line.startswith("[launch]")), "")
        again = run(cards, *words, "--set", "steps=40")
        resumed = next((line.split(" |")[0] for line in again.splitlines() if line.startswith("resumed")), "")
        holds = took <= ENDED and f"rank {cards - 1}" in named and bool(resumed)
        yield {"seconds": took, "code": job.returncode, "said": named, "then": resumed, "limit": ENDED, "holds": holds}


PARTS: dict[str, Callable[[int, argparse.Namespace], Iterator[Row]]] = {
    "parity": parity,
    "scaling": scaling,
    "widths": widths,
    "checkpoints": checkpoints,
    "faults": faults,
}


def shown(value: object) -> str:
    """A number as a table shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the parts, and write each number as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--cards", type=int, default=torch.cuda.device_count() or 2)
    parser.add_argument("--works", nargs="*", help="of 1.3b, 8b and 8b-fp8, these alone")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, help="of parity's, these alone")
    parser.add_argument("--meshes", nargs="*", help="of widths, these alone: tp=2 cp=2 pp=2; none is FSDP")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--titan", type=Path)
    parser.add_argument("--trace", action="store_true", help="also write a trace of each work beside the record")
    parser.add_argument("--out", type=Path, default=Path("multi.jsonl"))
    asked = parser.parse_args()
    unknown = sorted(set(asked.parts) - set(PARTS))
    if unknown:
        parser.error(f"PART: got {', '.join(unknown)}; allowed: {', '.join(PARTS)}")
    device = torch.cuda.get_device_name() if GPU else f"{os.cpu_count()} CPU cores"
    with asked.out.open("a") as record:
        for part in asked.parts or PARTS:
            rows = PARTS[part](asked.cards, asked)
            while row := following(rows):
                told = {"part": part, "cards": asked.cards, "device": device, "torch": str(torch.__version__), **row}
                record.write(json.dumps(told) + "\n")
                record.flush()
                print(part.ljust(12), "  ".join(f"{key} {shown(one)}" for key, one in row.items()), flush=True)


def following(rows: Iterator[Row]) -> Row | None:
    """The next row of a part; the last one tells where it failed."""
    try:
        return next(rows, None)
    except (RuntimeError, AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
