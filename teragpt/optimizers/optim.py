"""AdamW or Muon, gradient clipping and the learning-rate schedule, over each rank's own shards.

The optimizer sees plain local tensors: AdamW's step is elementwise, so shards need no communication, and DTensor's
dispatch (slow, and leaking in torch 2.11's fused AdamW, pytorch#188174) stays out of it. The shards are fp32 masters:
the model's own parameters where FSDP gathers them in the dtype of its products; on a GPU that is alone the model gets
copies in that dtype, and each step writes both. With `state_dtype` bf16 matrices are their own masters, rounded at
random (rounding.py), and only vectors, which are few, have others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from teragpt.compute.ops import JOINED, foreach_copy_, foreach_mul_, foreach_norm, fused, local
from teragpt.config import Config
from teragpt.datasets.batches import to_device
from teragpt.optimizers import rounding
from teragpt.optimizers.muon import Muon
from teragpt.parallelism.mesh import Mesh
from teragpt.parallelism.placement import like

if TYPE_CHECKING or torch.cuda.is_available():
    from teragpt.compute import kernels

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

    def __init__(self, model: nn.Module, mesh: Mesh, config: Config, dtype: torch.dtype = torch.float32) -> None:
        """Take the initial weights as masters. The model's products are in `dtype`."""
        self.mesh, self.config, self.rounds = mesh, config, config.state_dtype == "bf16"
        self.parameters = dict(model.named_parameters())
        self.rates = torch.zeros(4, device=mesh.devices.device_type)
        alone = mesh.devices.size() == 1 and all(fused(one) for one in self.parameters.values())
        self.copied = {
            name
            for name, one in self.parameters.items()
            if (one.ndim < 2 if self.rounds else alone and one.dtype != dtype)
        }  # whose masters stand apart
        masters = {name: local(self.parameters[name].detach()).float() for name in self.copied}
        self.alone = alone and bool(self.copied)  # all by kernels of ours, which can be recorded; torch's AdamW cannot
        self.joints: list[tuple[Tensor, list[Tensor]]] = []
        if self.alone:
            wide = summed_in(config, dtype, several=config.sequences > config.micro_batch)
            for parameter in self.parameters.values():
                parameter.data = parameter.data if self.rounds else parameter.data.to(dtype)
                parameter.grad_dtype = wide
            self.joints = list(join(model, wide))
        self.shards = {
            name: nn.Parameter(masters.get(name, local(one.detach()))) for name, one in self.parameters.items()
        }
        self.repeated: frozenset[str] = getattr(model, "repeated", frozenset())  # another pipeline stage counts them
        self.shared = set() if mesh.size("tp") == 1 else {n for n, p in self.parameters.items() if not cut_by_tp(p)}
        matrices = {name: value for name, value in self.parameters.items() if value.ndim >= 2}
        muon = config.optimizer == "muon"
        blocks = {n: p for n, p in matrices.items() if muon and n.startswith("layers.") and p.ndim == 2}
        self.muon = Muon(blocks, self.shards, mesh, config)
        self.plain = {name: shard for name, shard in self.shards.items() if name not in blocks}
        decayed = [shard for name, shard in self.plain.items() if name in matrices]
        others = [shard for name, shard in self.plain.items() if name not in matrices]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        betas = (config.beta1, config.beta2)
        self.layers = torch.zeros(0)
        self.adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)

    def schedule(self, step: int) -> None:
        """Set what a step's number decides, counted from 0: the learning rate, and how the moments are corrected."""
        self.rate = learning_rate(step, self.config)
        for group in self.adamw.param_groups:
            group["lr"] = self.rate
        corrections = 1 - self.config.beta1 ** (step + 1), (1 - self.config.beta2 ** (step + 1)) ** 0.5
        if self.alone or self.rounds or self.muon.matrices:
            self.rates.copy_(to_device(torch.tensor([self.rate, *corrections, step + 1]), self.rates.device))

    def reduce(self, loss: Tensor, asked: Tensor) -> Tensor:
        """Sum over all ranks, in one collective: the loss's shares, the squared gradient norm, what each asks of all.

        Returns [loss, gradient norm, the sum of what the ranks asked], in fp64.
        """
        cut: list[Tensor] = []
        shared: list[Tensor] = []
        for name, grad in self.gradients():
            if name not in self.repeated:
                (shared if name in self.shared else cut).append(grad)
        if shared:
            self.add_up(shared)
        square = (squares(cut) + squares(shared) / self.mesh.size("tp")) / self.mesh.size("dp_replicate")
        summary = torch.stack([loss.double(), square, asked, *self.by_layer()])
        if dist.get_world_size() > 1:
            dist.all_reduce(summary)
        self.layers = summary[3:].sqrt()
        return torch.stack([summary[0], summary[1].sqrt(), summary[2]])

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

    def step(self, norm: Tensor) -> None:
        """Clip the gradients, whose global norm is `norm`, update the parameters, and drop the gradients."""
        scale = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
        whole: dict[str, Tensor] = {}
        for name, grad in self.gradients():
            self.parameters[name].grad = None
            if name in self.muon.matrices:
                whole[name] = grad
            elif self.rounds and name not in self.copied:
                self.rounded_step(name, grad, scale)
            elif self.alone:
                self.fused_step(name, grad, scale)
            else:
                self.shards[name].grad = grad.to(self.shards[name].dtype)
        unscaled = {name: shard.grad for name, shard in self.shards.items() if shard.grad is not None}
        if unscaled:
            grads = list(unscaled.values())
            foreach_mul_(grads, scale.to(grads[0].dtype))  # one launch: a host must run ahead of its GPU
        if not self.alone:
            self.adamw.step()
        if whole:
            self.muon.step(whole, scale, self.rates[0])
        self.copy(name for name in (*whole, *unscaled) if name in self.copied)
        for name in unscaled:
            self.shards[name].grad = None

    def fused_step(self, name: str, grad: Tensor, scale: Tensor) -> None:
        """AdamW's step of one parameter and its copy by our kernel, which clips on the way."""
        shard, config = self.shards[name], self.config
        moments, decay = self.moments(shard), config.weight_decay if self.parameters[name].ndim >= 2 else 0.0
        state = shard.data, self.parameters[name].data, moments["exp_avg"], moments["exp_avg_sq"]
        kernels.adamw_(*state, grad, scale, self.rates, decay, (config.beta1, config.beta2), config.epsilon)

    def rounded_step(self, name: str, grad: Tensor, scale: Tensor) -> None:
        """AdamW's step of a matrix that is its own master in bf16, with the same dice on each rank that holds it."""
        shard, config = self.shards[name].data, self.config
        moments = self.moments(self.shards[name])
        update = kernels.rounded_adamw_ if fused(shard) else rounding.adamw_
        seed = int.from_bytes(blake2b(f"{config.seed}:{name}".encode(), digest_size=4).digest())
        state = shard, moments["exp_avg"], moments["exp_avg_sq"]
        betas = config.beta1, config.beta2
        update(*state, grad, scale, self.rates, seed, config.weight_decay, betas, config.epsilon)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter's name and its local gradient."""
        for joint, weights in self.joints:
            if joint.grad is not None:
                for weight, grad in zip(weights, joint.grad.split([len(one) for one in weights]), strict=True):
                    weight.grad = grad
                joint.grad = None
        for name, value in self.parameters.items():
            if value.grad is not None:
                yield name, local(value.grad)

    def moments(self, shard: Tensor) -> dict[str, Tensor]:
        """AdamW's moments of a shard, and the steps that they hold: 0 at first."""
        moments: dict[str, Tensor] = self.adamw.state[shard]
        if not moments:
            moments |= {"step": torch.zeros((), device=shard.device, dtype=torch.float32)}
            moments |= {moment: torch.zeros_like(shard) for moment in MOMENTS}
        return moments

    def state(self) -> dict[str, Tensor]:
        """Masters by NAME, AdamW's moments as `NAME.exp_avg` and `NAME.exp_avg_sq`, Muon's as `NAME.momentum`."""
        state = {name: like(self.parameters[name], shard.detach()) for name, shard in self.shards.items()}
        state |= {f"{name}.momentum": like(self.parameters[name], one) for name, one in self.muon.momentum.items()}
        for name, shard in self.plain.items():
            moments = self.moments(shard)
            state |= {f"{name}.{moment}": like(self.parameters[name], moments[moment]) for moment in MOMENTS}
        return state

    def resume(self, steps: int) -> None:
        """Go on with masters and moments that were loaded, the latter after so many steps."""
        for shard in self.plain.values():
            self.moments(shard)["step"].fill_(float(steps))
        self.copy(self.copied)

    @torch.no_grad()
    def copy(self, names: Iterable[str]) -> None:
        """Give parameters what their masters hold."""
        pairs = [(local(self.parameters[name].detach()), self.shards[name].detach()) for name in names]
        if pairs:
            foreach_copy_(*map(list, zip(*pairs, strict=True)))


def summed_in(config: Config, dtype: torch.dtype, *, several: bool) -> torch.dtype:
    """What a GPU that is alone keeps gradients in: fp32 where micro-batches add up, unless all state is in bf16."""
    return torch.float32 if several and config.state_dtype != "bf16" else dtype


def join(model: nn.Module, grad_dtype: torch.dtype) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Lay the weights that the model projects as one into one tensor, a leaf of its own, which ops.project takes.

    Returned with the weights, which are views of it from then on.
    """
    for module in model.modules():
        for names in JOINED:
            layers: list[Any] = [getattr(module, name, None) for name in names]
            if len(layers) > 1 and all(isinstance(layer, nn.Linear) for layer in layers):
                weights = [layer.weight for layer in layers]
                joint = torch.cat([weight.data for weight in weights]).requires_grad_()
                joint.grad_dtype = grad_dtype
                for weight, rows in zip(weights, joint.detach().split([len(one) for one in weights]), strict=True):
                    weight.data = rows
                layers[0].joint = joint
                yield joint, weights


def cut_by_tp(parameter: Tensor) -> bool:
    """Whether the ranks of `tp` hold parts of a parameter, not each the whole."""
    return isinstance(parameter, DTensor) and "tp" in (parameter.device_mesh.mesh_dim_names or ())


def squares(grads: list[Tensor]) -> Tensor:
    """The sum of all squares, a scalar in fp64."""
    if not grads:
        return torch.zeros((), dtype=torch.float64)
    wide = torch.promote_types(grads[0].dtype, torch.float32)
    norms = foreach_norm(grads, 2, wide)
    return torch.stack(norms).double().square().sum()
