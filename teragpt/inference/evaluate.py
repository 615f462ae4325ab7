"""What a trained model makes of held-out text: loss and bits per byte of each source, kept with the run.

Bits per byte compare models whatever their tokenizers; losses only models of one tokenizer. What was measured is a
file in the run folder, `evaluations/*.json`, so that runs are compared without measuring again. It must not know how
text is drawn.

B sequences, T tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teragpt.checkpoint import as_json
from teragpt.config import Config, ConfigError, Problem
from teragpt.data import Dataset
from teragpt.datasets.files import VALIDATION
from teragpt.inference.trained import describe, load
from teragpt.parallel import compute_dtype, load_dataset
from teragpt.storage import Folder, folder_at
from teragpt.tokenization.tokenizer import Tokenizer

FOLDER = "evaluations"
SEQUENCES = 1024
AT_ONCE = 1 << 12  # tokens of a forward pass


def evaluate(run: Path | str, data: str = "", sequences: int = SEQUENCES) -> dict[str, Any]:
    """Measure the newest checkpoint on held-out windows of `data` (unless given, the run's own), and keep the result.

    At most `sequences` windows of each source, the same ones each time. What was measured already is not measured
    again. Raises ConfigError for data of another tokenizer, or without a held-out window.
    """
    if sequences < 1:
        raise ConfigError([Problem("sequences", sequences, "a whole number from 1")])
    folder = folder_at(run, "run")
    checkpoint, tokenizer, config = describe(run)
    place = data or config.data
    wanted = "" if config.loader == Config.loader else config.tokenizer  # what ours was made with is looked at below
    dataset: Dataset = load_dataset(config.loader, place, wanted)
    if dataset.tokenizer_fingerprint != tokenizer.fingerprint:
        allowed = "a dataset of the tokenizer that the model was trained with"
        raise ConfigError([Problem("data", place or "the embedded corpus", allowed)])
    name = f"step-{checkpoint.step:08d}-data-{dataset.fingerprint[:12]}-{sequences}.json"
    if name in (folder / FOLDER).entries():
        return dict(json.loads((folder / FOLDER).read(name)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load(run, device)[0].to(compute_dtype(config, device))
    named = Path(place).name if place else "embedded"
    sources: dict[str, Dataset] = getattr(dataset, "sources", None) or {named: dataset}
    found = {
        "step": checkpoint.step,
        "data": dataset.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "context": config.context,
        "sequences": sequences,
        "time": time.time(),
        "sources": {key: measure(model, one, tokenizer, config.context, sequences) for key, one in sources.items()},
    }
    (folder / FOLDER).write(name, as_json(found))
    return found


def measure(
    model: torch.nn.Module, dataset: Dataset, tokenizer: Tokenizer, context: int, sequences: int
) -> dict[str, Any]:
    """Loss in nats a token, bits a byte, and how many of both they are of."""
    count = getattr(dataset, "windows", None)
    number = min(sequences, count(VALIDATION, context)) if count else sequences
    ids, targets = dataset.validation(number, context, 0, 1)
    nats = sum(losses(model, ids, targets, max(1, AT_ONCE // context)))
    size = sum(map(len, (text_of(row, tokenizer).encode() for row in targets.tolist())))
    return {
        "loss": nats / targets.numel(),
        "bits_per_byte": nats / math.log(2) / max(1, size),
        "tokens": targets.numel(),
        "bytes": size,
    }


@torch.inference_mode()
def losses(model: torch.nn.Module, ids: Tensor, targets: Tensor, rows: int) -> Iterator[float]:
    """The loss of some rows (B, T) after the other, in nats."""
    device = next(model.parameters()).device
    for some in zip(ids.split(rows), targets.split(rows), strict=True):
        read, wanted = (one.to(device) for one in some)
        yield float(model(read, targets=wanted)) * wanted.numel()


def text_of(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of tokens, without separators, which are no part of it."""
    return tokenizer.decode(token for token in tokens if token != tokenizer.end)


def kept(run: Folder) -> list[dict[str, Any]]:
    """What was measured of a run, in the order of its steps."""
    folder = run / FOLDER
    return [dict(json.loads(folder.read(name))) for name in sorted(folder.entries()) if name.endswith(".json")]


def table(found: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """Evaluations of runs by their names, in lines: best first within each source."""
    rows = [
        (source, one["bits_per_byte"], one["loss"], str(run), measured["step"], one["tokens"])
        for run, measured in found
        for source, one in measured["sources"].items()
    ]
    width = max([len("source"), *(len(row[0]) for row in rows)])
    wide = max([len("run"), *(len(row[3]) for row in rows)])
    yield f"{'source':{width}}  {'run':{wide}}  {'step':>9}  {'bits/byte':>9}  {'loss':>8}  {'tokens':>12}"
    for source, bits, loss, run, step, tokens in sorted(rows):
        yield f"{source:{width}}  {run:{wide}}  {step:>9,}  {bits:>9.4f}  {loss:>8.4f}  {tokens:>12,}"
