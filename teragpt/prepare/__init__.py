"""Text to datasets: sources are read in blocks, each block becomes a part, and of all parts the dataset is made.

Importing this loads nothing, since every run passes by on its way to the embedded corpus. It must not know how tokens
are drawn for training.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teragpt.prepare.documents import Recipe
    from teragpt.prepare.preparation import prepare
    from teragpt.prepare.report import read_report, summary

__all__ = ["Recipe", "prepare", "read_report", "summary"]

HOMES = {"Recipe": "documents", "prepare": "preparation", "read_report": "report", "summary": "report"}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'teragpt.prepare' has no attribute {name!r}")
    return getattr(import_module(f"teragpt.prepare.{HOMES[name]}"), name)
