"""TeraGPT: train a GPT of any size. Importing this costs nothing; torch is loaded when a name that needs it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teragpt.model import TeraGPT
    from teragpt.tokenization.tokenizer import Tokenizer
    from teragpt.train import Trainer

__all__ = ["TeraGPT", "Tokenizer", "Trainer"]
__version__ = "0.1.0"

HOMES = {"TeraGPT": "teragpt.model", "Tokenizer": "teragpt.tokenization.tokenizer", "Trainer": "teragpt.train"}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'teragpt' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
