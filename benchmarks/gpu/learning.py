"""How soon a model learns on one GPU: time to nanoGPT's last validation loss; fp8 and six heads beside the plain run.

`python -m benchmarks.gpu.texts TEXT && python -m teragpt.prepare TEXT/*.jsonl -o DATASET --tokenizer TOKENIZER`, then
`python -m benchmarks.gpu.learning DATASET --nanogpt FOLDER [--parts sweep peer ours compare same] [--tokens 2e8]`.
FOLDER is nanoGPT's checkout: its model, AdamW, cosine and clipping, compiled whole under autocast; its learning rate
and warm-up are swept in short runs first. Ours takes its size's own recipe over a part of the peer's tokens, and
decays within it. Both read the same batches and held-out sequences. Seconds are of steps alone: compilation and
evaluations are left out.
Each run is a process of its own; its rows are added to --out, where a later part finds those of an earlier one.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from teragpt.data import open_dataset
from teragpt.datasets.batches import Batches, to_device
from teragpt.sizes import SIZES

VOCABULARY = 50_304
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM, LOGGED = 6, 10  # steps that compile; steps between losses that nanoGPT's train.py reads
RATES, WARM_UPS = (6e-4, 1.2e-3, 2.4e-3), (0.03, 0.25)  # 6e-4 is nanoGPT's own; warm-up 0.1 of the steps meanwhile
LIMITS = {"muon": 0.6, "adamw": 0.6, "fp8": 1.005, "six heads": 1.005}  # of the peer's time; of the plain run's loss
SAME: dict[str, dict[str, object]] = {
    "plain": {}, "fp8": {"precision": "fp8"}, "six heads": {"heads": 6, "kv_heads": 6},
}  # fmt: skip
Row = dict[str, Any]


def curve(run: Callable[[int, int], object], loss: Callable[[], float], steps: int, points: int) -> Iterator[Row]:
    """Held-out losses on the way of `run(first, last)`, which ends when the device has.

    Seconds of the first steps, which compile, are those of as many later ones.
    """
    marks = [WARM, *(steps * number // points for number in range(1, points + 1))]
    seconds = first = 0.0
    run(0, WARM)
    for start, end in itertools.pairwise(marks):
        begun = time.perf_counter()
        run(start, end)
        took = time.perf_counter() - begun
        first = first or took / (end - start) * WARM
        seconds += took
        yield {"step": end, "seconds": round(seconds + first, 2), "loss": round(loss(), 4)}


def ours(asked: argparse.Namespace, job: Row) -> Iterator[Row]:
    """A run of ours, as the trainer takes its steps."""
    from teragpt.launcher.environment import World
    from teragpt.parallel import evaluate
    from teragpt.profiling import Steps

    context = SIZES[asked.size].context
    settings = {
        "size": asked.size, "num_tokens": VOCABULARY, "data": str(asked.dataset), "micro_batch": job["batch"],
        "global_batch_tokens": job["batch"] * context, "tokens": job["steps"] * job["batch"] * context,
        "eval_sequences": asked.held_out,
    }  # fmt: skip
    steps = Steps({**settings, **job["settings"]}, World())
    held_out = tuple(to_device(one, steps.device) for one in steps.dataset.validation(asked.held_out, context, 0, 1))

    def run(first: int, last: int) -> None:
        for _ in range(first, last):
            steps.step()
        finish()

    def loss() -> float:
        return float(evaluate(steps.model, held_out[0], held_out[1], steps.mesh, steps.config).item())

    told = {"learning_rate": steps.config.learning_rate, "warmup_steps": steps.config.warmup_steps}
    for row in curve(run, loss, steps.config.steps, job["points"]):
        yield {**told, **row}


def nanogpt(asked: argparse.Namespace, job: Row) -> Iterator[Row]:
    """Runs of nanoGPT's train.py, one for each of the job's (learning rate, warm-up), with one compilation."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", asked.nanogpt / "model.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = code
    spec.loader.exec_module(code)
    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    size = SIZES[asked.size]
    shape = {"block_size": size.context, "n_layer": size.depth, "n_head": size.heads, "n_embd": size.dim}
    model = code.GPT(code.GPTConfig(**shape, vocab_size=VOCABULARY, dropout=0.0, bias=False)).to(DEVICE)
    compiled: Any = torch.compile(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for rate, share in job["rates"]:
        model.load_state_dict(start)
        warm_up = max(1, round(share * job["steps"]))
        for row in peer_run(asked, job, model, compiled, rate, warm_up):
            yield {"learning_rate": rate, "warm_up": share, **row}


def peer_run(
    asked: argparse.Namespace, job: Row, model: Any, compiled: Any, rate: float, warm_up: int
) -> Iterator[Row]:
    """One of them."""
    dataset, steps, batch, context = (
        open_dataset(str(asked.dataset)),
        job["steps"],
        job["batch"],
        model.config.block_size,
    )
    optimizer = model.configure_optimizers(0.1, rate, (0.9, 0.95), DEVICE.type)
    batches = Batches(lambda number: dataset.batch(number, batch, context, 0, 0, 1), DEVICE)
    held_out = [to_device(one, DEVICE) for one in dataset.validation(asked.held_out, context, 0, 1)]

    def run(first: int, last: int) -> None:
        for number in range(first, last):
            for group in optimizer.param_groups:
                group["lr"] = cosine(number, rate, warm_up, steps)
            ids, targets = batches.take(number)
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss = compiled(ids, targets)[1]
            batches.prepare(number + 1)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if number % LOGGED == 0:
                loss.item()
        finish()

    @torch.no_grad()
    def loss() -> float:
        model.eval()
        pieces = zip(*(one.split(batch) for one in held_out), strict=True)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            found = torch.stack([compiled(*piece)[1] for piece in pieces]).mean()
        model.train()
        return float(found)

    yield from curve(run, loss, steps, job["points"])


def finish() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def cosine(step: int, rate: float, warm_up: int, steps: int) -> float:
    """nanoGPT's schedule, down to a tenth."""
    if step < warm_up:
        return rate * (step + 1) / (warm_up + 1)
    return rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up)))))


def part(name: str, asked: argparse.Namespace) -> None:
    """Do one part, and print what it found."""
    steps = int(asked.tokens) // (asked.batch * SIZES[asked.size].context)
    plain = {"batch": asked.batch, "points": 1}
    if name == "sweep":
        job = {**plain, "arm": "sweep", "steps": asked.sweep_steps}
        start(asked, {**job, "rates": [[rate, 0.1] for rate in RATES]})
        best = swept(asked)[0]
        start(asked, {**job, "rates": [[best, share] for share in WARM_UPS]})
        print(json.dumps({"part": name, "best": swept(asked)}), flush=True)
    elif name == "peer":
        start(asked, {**plain, "arm": "nanogpt", "steps": steps, "rates": [swept(asked)], "points": 20})
    elif name == "ours":
        for optimizer in asked.optimizers:
            count = round(steps * asked.share)
            start(
                asked, {**plain, "arm": optimizer, "steps": count, "settings": {"optimizer": optimizer}, "points": 20}
            )
            if rows(asked, "nanogpt"):
                print(json.dumps(against_peer(asked, optimizer)), flush=True)
    elif name == "compare":
        for optimizer in asked.optimizers:
            print(json.dumps(against_peer(asked, optimizer)), flush=True)
    else:
        for arm, settings in SAME.items():
            start(
                asked, {**plain, "batch": asked.batch // 2, "arm": arm, "steps": asked.same_steps, "settings": settings}
            )
        base = last(asked, "plain")["loss"]
        for arm in list(SAME)[1:]:
            told = {"arm": arm, "loss": last(asked, arm)["loss"], "plain": base}
            print(json.dumps({**told, "ratio": round(told["loss"] / base, 4), "limit": LIMITS[arm]}), flush=True)


def start(asked: argparse.Namespace, job: Row) -> None:
    """A job in a process of its own, whose rows are kept and shown as they come. Raises SystemExit where it fails."""
    command = [sys.executable, "-m", "benchmarks.gpu.learning", str(asked.dataset), "--nanogpt", str(asked.nanogpt)]
    command += ["--size", asked.size, "--held-out", str(asked.held_out), "--job", json.dumps(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, asked.out.open("a") as record:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith('{"arm"'):
                record.write(line)
                record.flush()
    if process.returncode:
        raise SystemExit(f"{job['arm']} ended with {process.returncode}")


def rows(asked: argparse.Namespace, arm: str) -> list[Row]:
    """What is kept of an arm."""
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    return [row for row in map(json.loads, lines) if row["arm"] == arm]


def last(asked: argparse.Namespace, arm: str) -> Row:
    """Its last row."""
    return rows(asked, arm)[-1]


def swept(asked: argparse.Namespace) -> tuple[float, float]:
    """The peer's learning rate and warm-up of least loss, its own rate where nothing was swept."""
    found = rows(asked, "sweep")
    best = min(found, key=lambda row: row["loss"]) if found else {"learning_rate": RATES[0], "warm_up": 0.1}
    return best["learning_rate"], best["warm_up"]


def against_peer(asked: argparse.Namespace, arm: str) -> Row:
    """When ours is first at the peer's last loss, or that it is not."""
    peer = last(asked, "nanogpt")
    reached = next((row for row in rows(asked, arm) if row["loss"] <= peer["loss"]), None)
    told = {"arm": arm, "peer_loss": peer["loss"], "peer_seconds": peer["seconds"], "loss": last(asked, arm)["loss"]}
    if reached is None:
        return {**told, "ratio": None, "limit": LIMITS[arm]}
    ratio = round(reached["seconds"] / peer["seconds"], 3)
    return {**told, "seconds": reached["seconds"], "ratio": ratio, "limit": LIMITS[arm]}


def main() -> None:
    """Do the parts, or one run in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--nanogpt", type=Path, default=Path("nanoGPT"))
    parser.add_argument("--size", default="124m")
    parser.add_argument("--held-out", type=int, default=512, help="sequences of an evaluation")
    parser.add_argument("--parts", nargs="*", default=["sweep", "peer", "ours", "same"])
    parser.add_argument("--tokens", type=float, default=2e8, help="that nanoGPT sees")
    parser.add_argument("--share", type=float, default=0.5, help="part of them that ours sees")
    parser.add_argument("--optimizers", nargs="*", default=["muon", "adamw"])
    parser.add_argument("--batch", type=int, default=64, help="sequences of a step")
    parser.add_argument("--sweep-steps", type=int, default=200)
    parser.add_argument("--same-steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("learning.jsonl"))
    parser.add_argument("--job", type=json.loads, help="one run, in this process")
    asked = parser.parse_args()
    if asked.job is None:
        for name in asked.parts:
            part(name, asked)
        return
    job: Row = asked.job
    shared = {"arm": job["arm"], "batch": job["batch"], "of": job["steps"]}
    for row in (nanogpt if "rates" in job else ours)(asked, job):
        memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        print(json.dumps({**shared, **row, "gb": round(memory, 1)}), flush=True)


if __name__ == "__main__":
    main()
