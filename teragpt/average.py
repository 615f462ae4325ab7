"""The mean of a run's last checkpoints, which does better than the last one alone where the rate was still high.

`python -m teragpt.average RUN OUT --last 5` writes a run folder that `sample`, `export` and `start_from` take (Izmailov
et al. 2018; for pre-training Sanyal et al. 2023). A moving average in memory would cost 4 bytes a parameter on every
step; this costs nothing until it is wanted, and `keep_last` says of how many checkpoints it can be made. The
optimizer's state is the last checkpoint's.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from teragpt.checkpoint import META, Checkpoint, as_json, published, reader, writer
from teragpt.config import ConfigError, Problem
from teragpt.inference.trained import config_of, newest
from teragpt.storage import Folder, folder_at

BAD_CONFIG = 2


def average(run: Path | str, out: Path | str, last: int) -> Checkpoint:
    """Write to the new run folder `out` the mean of the parameters in the `last` checkpoints of `run`.

    It takes twice the host memory of one checkpoint. Raises ConfigError when there are fewer, or `out` has some.
    """
    source, target = folder_at(run, "run"), folder_at(out, "out")
    final, found = newest(source), published(source)
    if not 1 <= last <= len(found):
        raise ConfigError(
            [Problem("last", last, f"a whole number from 1 to {len(found)}, the checkpoints of {source}")]
        )
    if target.entries():
        raise ConfigError([Problem("out", str(out), "a folder that is not there yet")])
    for checkpoint in found[-last:]:
        checkpoint.verify(config_of(final))
    return publish(mean(found[-last:]), final, source, target)


def mean(found: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """The last checkpoint's state, its parameters replaced by the mean over all of `found`."""
    state = tensors(found[-1])
    parameters = {name for name in state if name.rpartition(".")[0] not in state}  # a moment is PARAMETER.moment
    for checkpoint in found[:-1]:
        for name, value in tensors(checkpoint, parameters).items():
            state[name] += value
    for name in parameters:
        state[name] /= len(found)
    return state


def tensors(checkpoint: Checkpoint, names: set[str] | None = None) -> dict[str, Tensor]:
    """What a checkpoint holds, whole and on this machine; of `names` only, where they are given."""
    metadata = reader(checkpoint.folder).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata) and (names is None or name in names)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
        load(dict(state), storage_reader=reader(checkpoint.folder), no_dist=True)
    return state


def publish(state: dict[str, Tensor], final: Checkpoint, source: Folder, target: Folder) -> Checkpoint:
    """Write a state as the one checkpoint of a run folder, beside the tokenizer and settings of its source."""
    folder = target / "checkpoints" / f"step-{final.step:08d}-attempt-1"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save(dict(state), storage_writer=writer(folder), no_dist=True)
    target.write("config.json", as_json(final.meta["config"]))
    with (source / "tokenizer").local() as files:
        for path in files.iterdir():
            (target / "tokenizer").write(path.name, path.read_bytes())
    meta = {**final.meta, "attempt": 1, "files": dict(sorted(folder.entries().items()))}
    folder.write(META, as_json(meta))
    return newest(target)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m teragpt.average", description="Average a run's last checkpoints.")
    parser.add_argument("run", help="run folder or URL")
    parser.add_argument("out", help="run folder to make")
    parser.add_argument("--last", type=int, default=5, help="checkpoints to average (default 5)")
    options = parser.parse_args(arguments)
    try:
        made = average(options.run, options.out, options.last)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIG
    print(f"the mean of {options.last} checkpoints is {made.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
