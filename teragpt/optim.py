"""AdamW or Muon, gradient clipping and the learning-rate schedule, over each rank's own shards.

The optimizer sees plain local tensors: AdamW's step is elementwise, so shards need no communication, and DTensor's
dispatch (slow, and leaking in torch 2.11's fused AdamW, pytorch#188174) stays out of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from teragpt.config import Config
from teragpt.mesh import Mesh
from teragpt.muon import Muon
from teragpt.ops import local
from teragpt.placement import like

MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(step: int, config: Config) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then cosine, or constant and linear decay (wsd)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    start = config.warmup_steps if config.schedule == "cosine" else int(config.steps * (1 - config.decay_fraction))
    done = min(1.0, max(0.0, (step - start) / max(1, config.steps - start)))
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * left)


class Optimizer:
    """Updates the local shards of a model's parameters: the blocks' matrices by Muon where it is chosen, else by AdamW.

    AdamW is Loshchilov & Hutter's (2019); what is no matrix does not decay.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, config: Config) -> None:
        self.mesh, self.config = mesh, config
        self.parameters = dict(model.named_parameters())
        self.shards = {name: nn.Parameter(local(value.detach())) for name, value in self.parameters.items()}
        self.repeated: frozenset[str] = getattr(model, "repeated", frozenset())  # another pipeline stage counts them
        self.shared = set() if mesh.size("tp") == 1 else {n for n, p in self.parameters.items() if not cut_by_tp(p)}
        matrices = {name: value for name, value in self.parameters.items() if value.ndim >= 2}
        blocks = {n: p for n, p in matrices.items() if config.optimizer == "muon" and n.startswith("layers.")}
        self.muon = Muon(blocks, self.shards, mesh, config)
        self.plain = {name: shard for name, shard in self.shards.items() if name not in blocks}
        decayed = [shard for name, shard in self.plain.items() if name in matrices]
        others = [shard for name, shard in self.plain.items() if name not in matrices]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        betas = (config.beta1, config.beta2)
        self.layers = torch.zeros(0)
        self.adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)

    def reduce(self, loss: Tensor, asked: float) -> tuple[Tensor, Tensor]:
        """Sum over all ranks, in one collective: the loss's shares, the squared gradient norm, what each asks of all.

        Returns [loss, gradient norm] and the sum of what the ranks asked.
        """
        cut: list[Tensor] = []
        shared: list[Tensor] = []
        for name, grad in self.gradients():
            if name not in self.repeated:
                (shared if name in self.shared else cut).append(grad)
        if shared:
            self.add_up(shared)
        square = (squares(cut) + squares(shared) / self.mesh.size("tp")) / self.mesh.size("dp_replicate")
        summary = torch.stack([loss.double(), square, torch.full_like(square, asked), *self.by_layer()])
        if dist.get_world_size() > 1:
            dist.all_reduce(summary)
        self.layers = summary[3:].sqrt()
        return torch.stack([summary[0], summary[1].sqrt()]), summary[2]

    def by_layer(self) -> list[Tensor]:
        """This rank's share of each layer's squared gradient norm, and last that of all else; on request alone."""
        if not self.config.log_norms:
            return []
        found: list[list[Tensor]] = [[] for _ in range(self.config.depth + 1)]
        zero = torch.zeros((), dtype=torch.float64, device=self.mesh.devices.device_type)
        for name, grad in self.gradients():
            if name in self.repeated:
                continue
            holders = self.mesh.size("dp_replicate") * (self.mesh.size("tp") if name in self.shared else 1)
            found[int(name.split(".")[1]) if name.startswith("layers.") else -1].append(squares([grad]) / holders)
        return [torch.stack(some).sum() if some else zero for some in found]

    def norms(self) -> dict[str, float]:
        """The gradient norm of each layer and of all else at the last step, before clipping; on request alone."""
        names = [*(f"layers.{layer}" for layer in range(self.config.depth)), "rest"]
        return dict(zip((f"grad_norm/{name}" for name in names), self.layers.tolist(), strict=False))

    def add_up(self, grads: list[Tensor]) -> None:
        """Sum gradients, of which each rank of `tp` holds its tokens' part, in one collective."""
        joint = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(joint, group=self.mesh.process_group("tp"))
        for grad, summed in zip(grads, joint.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(summed.view_as(grad))

    def step(self, step: int, norm: Tensor) -> None:
        """Clip the gradients, whose global norm is `norm`, update the parameters, and drop the gradients."""
        scale = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
        for name, grad in self.gradients():
            self.shards[name].grad = grad.mul_(scale.to(grad.dtype))
            self.parameters[name].grad = None
        rate = learning_rate(step, self.config)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.muon.step(rate)
        for shard in self.shards.values():
            shard.grad = None

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter's name and its local gradient."""
        for name, value in self.parameters.items():
            if value.grad is not None:
                yield name, local(value.grad)

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments as `NAME.exp_avg` and `NAME.exp_avg_sq`, Muon's as `NAME.momentum`, placed as NAME is."""
        state = {f"{name}.momentum": like(self.parameters[name], one) for name, one in self.muon.momentum.items()}
        for name, shard in self.plain.items():
            moments = self.adamw.state[shard]
            if not moments:
                moments |= {"step": torch.zeros((), device=shard.device, dtype=torch.float32)}
                moments |= {moment: torch.zeros_like(shard) for moment in MOMENTS}
            state |= {f"{name}.{moment}": like(self.parameters[name], moments[moment]) for moment in MOMENTS}
        return state

    def set_steps(self, steps: int) -> None:
        """Tell AdamW's bias correction how many steps the moments hold."""
        for shard in self.plain.values():
            self.adamw.state[shard]["step"].fill_(float(steps))


def cut_by_tp(parameter: Tensor) -> bool:
    """Whether the ranks of `tp` hold parts of a parameter, not each the whole."""
    return isinstance(parameter, DTensor) and "tp" in (parameter.device_mesh.mesh_dim_names or ())


def squares(grads: list[Tensor]) -> Tensor:
    """The sum of all squares, a scalar in fp64."""
    return get_total_norm(grads, foreach=True).double().square()
