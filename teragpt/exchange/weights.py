"""The weights of a folder that transformers saved, read one at a time, and a checkpoint that is written so.

Memory holds the largest of them: as it lies in its file, and in fp32. It must not know what kind of model they are.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

from teragpt.checkpoint import writer
from teragpt.config import Config, ConfigError, Problem
from teragpt.exchange.export import exported, rows
from teragpt.optimizers.optim import MOMENTS
from teragpt.parallel import build_model, load_attribute
from teragpt.storage import Folder

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # which fp32 holds to the bit
NAMED = 3  # of many weights, that an error names
INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Weights:
    """Parameters under our names. `broken`: theirs that were read and are not finite."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Look at what the folder's files say of their weights. Raises ConfigError with all that differs."""
        self.shapes: dict[str, Tensor] = dict(
            build_model(load_attribute(config.model, "model"), config).state_dict()
        )  # on the meta device
        self.config, self.broken = config, list[str]()
        self.files = {name: path for path in files(folder) for name in names_in(path)}
        self.wrong(config)

    def wrong(self, config: Config) -> None:
        """Raise ConfigError where weights are missing, spare, of another shape or dtype, or a tied head is another."""
        names = {exported(name): name for name in self.shapes}
        spare = [name for name in self.files if name not in names and not (config.tied and name == HEAD)]
        missing = [name for name in names if name not in self.files]
        problems = [
            Problem("weights", f"{len(some)} {what}", f"{allowed} ({listed(some)})")
            for what, allowed, some in (
                ("fewer", "every weight of the model", missing),
                ("more", "no others than the model's", spare),
            )
            if some
        ]
        problems += [
            one for theirs, name in names.items() if theirs in self.files for one in self.misfits(theirs, name)
        ]
        if config.tied and {HEAD, EMBEDDING} <= self.files.keys() and not self.same(HEAD, EMBEDDING):
            allowed = f"the values of {EMBEDDING}, since tie_word_embeddings is true"
            problems.append(Problem(HEAD, "others", allowed))
        if problems:
            raise ConfigError(problems)

    def misfits(self, theirs: str, name: str) -> Iterator[Problem]:
        """What is wrong with one that is there, by what its file says of it."""
        with opened(self.files[theirs]) as file:
            said = file.get_slice(theirs)
            shape, wanted = said.get_shape(), list(self.shapes[name][: rows(name, self.config)].shape)
            if shape != wanted:
                yield Problem(theirs, shape, f"a weight of {wanted}")
            elif said.get_dtype() not in DTYPES:
                dtypes = ", ".join(map(str, DTYPES.values()))
                yield Problem(theirs, str(file.get_tensor(theirs).dtype), f"one of {dtypes}")

    def same(self, one: str, other: str) -> bool:
        """Whether two weights have the same values."""
        return torch.equal(self.stored(one), self.stored(other))

    def stored(self, theirs: str) -> Tensor:
        """A weight as it lies in its file, of which nothing else stays in memory."""
        with opened(self.files[theirs]) as file:
            found: Tensor = file.get_tensor(theirs)
            return found

    def read(self, name: str) -> Tensor:
        """A parameter in fp32, with rows of zeros that pad the vocabulary."""
        weight, whole = self.stored(exported(name)), torch.zeros(self.shapes[name].shape)
        whole[: len(weight)] = weight
        if not all(end.isfinite() for end in weight.aminmax()):  # of which either is NaN where anything is
            self.broken.append(exported(name))
        return whole


class Streamed(DefaultSavePlanner):
    """Plans a checkpoint of parameters and empty moments on the meta device, and reads each as it is written."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """What is to be written under a name."""
        if index.fqn in self.weights.shapes:
            return self.weights.read(index.fqn)
        return torch.zeros(self.weights.shapes[index.fqn.rpartition(".")[0]].shape)


def write_state(weights: Weights, folder: Folder) -> None:
    """Write a checkpoint of the weights with the optimizer's empty moments, each a file of its own.

    Raises ConfigError for weights that are not finite, and OSError.
    """
    moments = {f"{name}.{moment}": one for name, one in weights.shapes.items() for moment in MOMENTS}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
        try:
            save(
                {**weights.shapes, **moments},
                storage_writer=writer(folder, apart=True),
                planner=Streamed(weights),
                no_dist=True,
            )
        except CheckpointException as error:  # a BaseException, which holds the failing rank's own
            raise next(iter(error.failures.values()))[0] from None
    if weights.broken:
        raise ConfigError([Problem(name, "NaN or infinity", "finite weights") for name in weights.broken])


def files(folder: Path) -> list[Path]:
    """A folder's files of weights. Raises ConfigError for an index that names others."""
    found: set[str] = {"model.safetensors"}
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX).get("weight_map")
        found = {str(name) for name in index.values()} if isinstance(index, dict) else set()
        if not found or any(Path(name).name != name for name in found):
            allowed = "a `weight_map` from weights to files of the same folder"
            raise ConfigError([Problem("weights", str(folder / INDEX), allowed)])
    elif not (folder / "model.safetensors").exists():
        pickled = any(folder.glob("*.bin"))
        why = "those in .bin are pickles, which run code as they are read: have transformers open and save the model"
        allowed = f"a file of safetensors ({why if pickled else 'there is none'})"
        raise ConfigError([Problem("weights", str(folder / "model.safetensors"), allowed)])
    return [folder / name for name in sorted(found)]


def names_in(path: Path) -> list[str]:
    """The weights of a file. Raises ConfigError where it cannot be read."""
    try:
        with opened(path) as file:
            return list(file.keys())
    except Exception as error:  # noqa: BLE001 - the library raises an exception of its own for torn files
        raise ConfigError([Problem("weights", str(path), f"a readable safetensors file ({error})")]) from None


def opened(path: Path) -> Any:
    """A file of safetensors; closed, none of what it was mapped to stays in memory."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many there are beside."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises ConfigError that names the file."""
    try:
        content = json.loads(path.read_text("utf-8"))
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError([Problem("model", str(path), f"a readable JSON object ({error})")]) from None
