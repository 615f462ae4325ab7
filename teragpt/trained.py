"""A trained model out of a run folder, whole and on this machine: what sampling, export and serving start from."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import cast

import torch
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

from teragpt.checkpoint import Checkpoint, published
from teragpt.config import Config, ConfigError, Problem
from teragpt.model import TeraGPT
from teragpt.parallel import build_model
from teragpt.tokenizer import Tokenizer


def load(folder: Path | str, device: str | torch.device = "cpu") -> tuple[TeraGPT, Tokenizer, Config]:
    """The newest checkpoint's model in evaluation mode, its tokenizer and its configuration.

    Raises ConfigError when the folder has no published checkpoint, or one that is damaged.
    """
    checkpoint = newest(Path(folder))
    config = config_of(checkpoint)
    checkpoint.verify(config)
    model = cast("TeraGPT", build_model(config))
    model.to_empty(device=device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
        load_tensors(dict(model.state_dict()), checkpoint_id=str(checkpoint.folder), no_dist=True)
    return model.eval(), Tokenizer(str(Path(folder) / "tokenizer")), config


def newest(folder: Path) -> Checkpoint:
    """The newest published checkpoint of a run folder. Raises ConfigError when there is none."""
    found = published(folder)
    if not found:
        raise ConfigError([Problem("run", str(folder), "a run folder with a published checkpoint")])
    return found[-1]


def config_of(checkpoint: Checkpoint) -> Config:
    """The configuration that a checkpoint was written with."""
    known = {field.name for field in fields(Config)}
    return Config(**{name: value for name, value in checkpoint.meta["config"].items() if name in known})
