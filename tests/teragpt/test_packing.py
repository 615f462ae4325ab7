from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from teragpt.compute.collectives import Group
from teragpt.config import Config, ConfigError
from teragpt.datasets.packing import confine
from teragpt.model import TeraGPT

END = 7
DOCUMENTS = [[3, 1, 4, 1, 5, END], [END], [2, 6, 5, END], [9, 2, 6]]


MESH: Any = SimpleNamespace(context=Group("", 1, 0))  # all that is asked of one


def small(packing: str) -> TeraGPT:
    torch.manual_seed(0)
    model = TeraGPT(32, 2, 4, 64, kv_heads=2).double()
    told: list[Callable[[torch.Tensor], None]] = []
    cast("Any", model).pipeline = SimpleNamespace(told=told)
    confine(model, MESH, Config(packing=packing), END)

    def tell(_: object, args: tuple[torch.Tensor]) -> None:
        for listener in told:
            listener(*args)

    model.register_forward_pre_hook(tell)
    return model


def test_a_packed_document_reads_as_it_does_alone() -> None:
    orders = DOCUMENTS, [DOCUMENTS[2], DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[3]]
    packed = torch.tensor([list(chain(*order)) for order in orders])
    found = small("documents")(packed)
    alone = small("plain")
    expected = [torch.cat([alone(torch.tensor([one]))[0] for one in order]) for order in orders]
    assert torch.allclose(found, torch.stack(expected), atol=1e-12)
    assert not torch.allclose(found, alone(packed), atol=1e-3)


def test_no_gradient_crosses_a_separator() -> None:
    model = small("documents")
    ids = torch.tensor([list(chain(*DOCUMENTS))])
    seen: list[torch.Tensor] = []

    def keep(_module: object, _args: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    model.embed_tokens.register_forward_hook(keep)
    model(ids)[0, 7:11].sum().backward()
    slope = seen[0].grad
    assert slope is not None
    reached = slope[0].abs().sum(1) > 0
    assert reached.tolist() == [7 <= at < 11 for at in range(ids.size(1))]


def test_a_model_or_a_dataset_that_cannot_is_named() -> None:
    with pytest.raises(ConfigError, match=r"packing: got 'documents'; allowed: plain for .*, which has no attend"):
        confine(nn.Linear(2, 2), MESH, Config(packing="documents"), END)
    with pytest.raises(ConfigError, match="plain for a loader without `end`"):
        confine(small("plain"), MESH, Config(packing="documents"), None)
