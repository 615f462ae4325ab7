"""Models of transformers' own making, as its users have them: what tests of import and export do to them alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from teragpt.exchange.export import export


def with_tokenizer(folder: Path, trained: Path) -> Path:
    """The folder of a model that has none, with the tokenizer of a run of ours."""
    for path in export(trained, folder.parent / "ours").glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def same_weights(theirs: Path, again: Path) -> None:
    """Every weight of two models of one file is the same to the bit."""
    one, other = (load_file(folder / "model.safetensors") for folder in (theirs, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
