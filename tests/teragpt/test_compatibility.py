from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from teragpt.compute.compatibility import known_to, refuse_rowwise
from teragpt.config import ConfigError, resolve
from tests.teragpt import ranks

ROWWISE = {**ranks.SMALL, "dim": 64, "heads": 4, "kv_heads": 2, "precision": "fp8", "fp8_recipe": "rowwise"}


@dataclass
class Kind:
    there: int


def test_rowwise_is_refused_where_torch_cannot_compute_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.15.1+cpu")
    refuse_rowwise(resolve(ROWWISE), "cpu")
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    refuse_rowwise(resolve(ROWWISE), "cuda")
    refuse_rowwise(resolve({**ROWWISE, "fp8_recipe": "tensorwise"}), "cpu")
    refuse_rowwise(resolve({**ranks.SMALL, "precision": "bf16"}), "cpu")
    told = "fp8_recipe: got 'rowwise'; allowed: tensorwise, or rowwise on a GPU or with torch 2.15 or later"
    with pytest.raises(ConfigError, match=told):
        refuse_rowwise(resolve(ROWWISE), "cpu")


def test_options_that_this_torch_does_not_know_are_left_out() -> None:
    assert known_to(Kind, {"there": 1, "newer": 2}) == {"there": 1}
