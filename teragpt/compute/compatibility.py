"""What differs between the versions of torch that pyproject.toml admits, 2.11 to 2.15: in one place, with reasons.

What is the same in all of them stands where it is used. When the oldest version goes, so does its part here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from teragpt.config import ROWWISE_ON_CPU, Config, ConfigError, Problem


def version() -> tuple[int, int]:
    """This torch's, without what follows the minor number."""
    major, minor, *_ = str(torch.__version__).split(".")
    return int(major), int(minor)


def refuse_rowwise(config: Config, device: str) -> None:
    """Raise ConfigError for `fp8_recipe` rowwise where this torch cannot compute it.

    Before 2.15 `_scaled_mm` takes no scale beside each row on CPU, and what is compiled there loses its gradients.
    """
    if config.precision == "fp8" and config.fp8_recipe == "rowwise" and device == "cpu" and version() < ROWWISE_ON_CPU:
        allowed = (
            f"tensorwise, or rowwise on a GPU or with torch 2.15 or later; this is torch {torch.__version__} on CPU"
        )
        raise ConfigError([Problem("fp8_recipe", config.fp8_recipe, allowed)])


def fsspec_storage() -> Any:
    """torch's module of checkpoints in object stores, whose name begins with an underscore in older versions."""
    name = "torch.distributed.checkpoint.{}fsspec_filesystem"
    return import_module(name.format("" if find_spec(name.format("")) else "_"))


def known_to(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that a dataclass of torch has: torchrun's newer ones (numa_options, ...) come with its versions."""
    return {field.name: options[field.name] for field in dataclasses.fields(kind) if field.name in options}
