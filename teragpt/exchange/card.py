"""The model card of an export: what the model is, what it was trained on and how, its curve and evaluations.

Why: whoever finds the folder a year later has nothing else. It tells what stands in the run folder and must not know
how weights are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from teragpt.checkpoint import Checkpoint
from teragpt.config import Config
from teragpt.datasets.portions import parse_mixture
from teragpt.inference.evaluate import kept
from teragpt.storage import Folder

POINTS = 10  # of the curve
PLAN = (
    "dim", "depth", "heads", "kv_heads", "head_dim", "ffn", "num_tokens", "context", "tied", "tokens",
    "global_batch_tokens", "steps", "micro_batch", "optimizer", "learning_rate", "warmup_steps", "schedule",
    "weight_decay", "precision", "packing", "seed", "dp_replicate", "tp", "cp", "pp",
)  # fmt: skip


def card(run: Folder, checkpoint: Checkpoint, config: Config, parameters: int, kind: str) -> str:
    """The `README.md`, with the header that model hubs read; `kind`: transformers' `model_type`."""
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", f"tags: [teragpt, {kind}]", "---"]
    meta = checkpoint.meta
    return "\n".join(
        [
            *head,
            f"# {config.size}, step {checkpoint.step:,}",
            "",
            f"A decoder of {parameters:,} parameters in the shape of {kind.capitalize()}, trained with TeraGPT.",
            "",
            "## Plan",
            "",
            *rows(["setting", "value"], [[f"`{name}`", str(getattr(config, name))] for name in PLAN]),
            "",
            f"Ranks: {meta.get('ranks', 1)}, with torch {meta.get('torch', 'unknown')}.",
            "",
            "## Data",
            "",
            *data(config, meta),
            "",
            "## Curve",
            "",
            *curve(run, checkpoint.step),
            "",
            "## Evaluation",
            "",
            *evaluations(run, checkpoint.step),
            "",
        ]
    )


def data(config: Config, meta: dict[str, Any]) -> Iterator[str]:
    """What it was trained on: names and weights, and the fingerprint; not where that lay."""
    portions = parse_mixture(config.data)
    named = [f"{Path(one.place).name} ({one.weight})" for one in portions] or [Path(config.data).name]
    yield ", ".join(name for name in named if name) or "The source of Python's standard library."
    if meta.get("data"):
        yield f"Fingerprint: `{meta['data']}`."


def curve(run: Folder, last: int) -> Iterator[str]:
    """Some points of the training loss and the held-out loss, up to the exported step."""
    values: dict[int, dict[str, float]] = {}
    for name in sorted(name for name in run.entries() if name.startswith("metrics") and name.endswith(".jsonl")):
        for line in run.read(name).decode().splitlines():
            point = json.loads(line)
            if point["step"] <= last:
                values.setdefault(point["step"], {}).update(
                    {key: point[key] for key in ("loss", "val_loss") if point.get(key) is not None}
                )
    shown = [step for step, point in sorted(values.items()) if "val_loss" in point]
    chosen = shown[:: -(-len(shown) // POINTS)] if shown else []
    steps = sorted({*chosen, *shown[-1:]})
    if not steps:
        yield "No curve lies with the run."
        return
    said = [
        [f"{step:,}", *(f"{values[step][key]:.4f}" if key in values[step] else "" for key in ("loss", "val_loss"))]
        for step in steps
    ]
    yield from rows(["step", "loss", "held-out loss"], said)


def evaluations(run: Folder, step: int) -> Iterator[str]:
    """What was measured of the exported step, in nats a token and bits a byte."""
    found = [one for one in kept(run) if one["step"] == step]
    if not found:
        yield "Not evaluated: `teragpt eval RUN` before `teragpt export` tells it here."
        return
    said = [
        [source, f"{one['loss']:.4f}", f"{one['bits_per_byte']:.4f}", f"{one['tokens']:,}"]
        for measured in found
        for source, one in measured.get("sources", {}).items()
    ]
    answered = [
        [task, metric, f"{value:.4f}"]
        for measured in found
        for task, metrics in measured.get("tasks", {}).items()
        for metric, value in metrics.items()
    ]
    yield from rows(["held-out source", "loss", "bits per byte", "tokens"], said) if said else ()
    yield from ["", *rows(["task", "metric", "value"], answered)] if answered else ()


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]
