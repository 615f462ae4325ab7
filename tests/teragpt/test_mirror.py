from __future__ import annotations

import torch

from teragpt.mirror import Mirror


def test_a_staged_state_stays_as_it_was_while_training_changes_the_original() -> None:
    state = {"weight": torch.arange(12.0).view(3, 4), "empty": torch.empty(0, 4), "step": torch.tensor(3.0)}
    mirror = Mirror(state)
    staged = mirror.stage(state)
    before = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in state.values():
        tensor.add_(1)
    assert all(torch.equal(staged[name], tensor) for name, tensor in before.items())
    again = mirror.stage(state)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert again["weight"].data_ptr() == staged["weight"].data_ptr()  # room is made once
