"""A trained model out of a run folder, whole and on this machine: what sampling, export and serving start from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

from teragpt.checkpoint import Checkpoint, published, reader
from teragpt.config import Config, ConfigError, Problem, kept
from teragpt.model import TeraGPT
from teragpt.parallel import build_model, load_attribute
from teragpt.storage import Folder, folder_at
from teragpt.tokenization.tokenizer import Tokenizer


def load(folder: Path | str, device: str | torch.device = "cpu") -> tuple[TeraGPT, Tokenizer, Config]:
    """The newest checkpoint's model in evaluation mode, its tokenizer and its configuration.

    Raises ConfigError when the folder has no published checkpoint, or one that is damaged.
    """
    checkpoint, tokenizer, config = describe(folder)
    model = cast("TeraGPT", build_model(load_attribute(config.model, "model"), config))
    model.to_empty(device=device)
    read(checkpoint, dict(model.state_dict()))
    return model.eval(), tokenizer, config


def describe(folder: Path | str) -> tuple[Checkpoint, Tokenizer, Config]:
    """The newest checkpoint of a run folder, its tokenizer and its configuration, without the weights.

    Raises ConfigError when the folder has no published checkpoint, or one that is damaged.
    """
    run = folder_at(folder, "run")
    checkpoint = newest(run)
    config = config_of(checkpoint)
    checkpoint.verify(config)
    with (run / "tokenizer").local() as files:
        tokenizer = Tokenizer(str(files))
    return checkpoint, tokenizer, config


def read(checkpoint: Checkpoint, into: dict[str, Tensor]) -> None:
    """Fill tensors with those of their names in a checkpoint, whatever mesh wrote it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
        load_tensors(into, storage_reader=reader(checkpoint.folder), no_dist=True)


def newest(run: Folder) -> Checkpoint:
    """The newest published checkpoint of a run folder. Raises ConfigError when there is none."""
    found = published(run)
    if not found:
        raise ConfigError([Problem("run", str(run), "a run folder with a published checkpoint")])
    return found[-1]


def config_of(checkpoint: Checkpoint) -> Config:
    """The configuration that a checkpoint was written with."""
    return kept(checkpoint.meta["config"])
