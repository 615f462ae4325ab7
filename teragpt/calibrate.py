"""Measures on this card, or on a core where there is none, what the planner needs to know of its kind: a JSON file.

Each part is timed for as long as a card takes to warm up, since a card's clocks fall with its temperature and power. A
core's time is the processor's, so that what else the machine does counts less. It knows the operations of a step, and
no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from teragpt.compute.ops import linear_cross_entropy, swiglu
from teragpt.config import ConfigError, Problem
from teragpt.fp8 import E4M3, rows_by_rows
from teragpt.plan.calibration import Calibration, shipped, write
from teragpt.plan.hardware import CORE, DEVICES, Device, known
from teragpt.plan.memory import BF16
from teragpt.plan.step import GATE_BYTES

LAUNCHES = 2000


@dataclass(frozen=True)
class Load:
    """What is measured: `tokens` of products of these `widths`, attention by (head width, tokens) with `dim` in all.

    `elements` are copied; the loss is over a `vocabulary`. Each is repeated for `seconds`.
    """

    tokens: int
    widths: Sequence[int]
    attention: Sequence[tuple[int, int]]
    dim: int
    elements: int
    vocabulary: int
    seconds: float


CARD = Load(
    tokens=16_384,
    widths=(512, 1024, 2048, 4096, 8192),
    attention=((64, 1024), (64, 2048), (128, 1024), (128, 2048), (128, 8192)),
    dim=2048,
    elements=1 << 28,
    vocabulary=50_304,
    seconds=2.0,
)
ONE_CORE = Load(
    tokens=1024,
    widths=(128, 256, 512, 1024),
    attention=((64, 256), (64, 1024), (128, 1024)),
    dim=256,
    elements=1 << 24,
    vocabulary=2048,
    seconds=0.5,
)


def calibrate(file: Path, load: Load | None = None) -> Calibration:
    """Measure this machine's card, or a core where it has none, and write the file.

    Raises ConfigError: an unknown card, a file that is there.
    """
    if file.exists():
        raise ConfigError([Problem("calibrate", str(file), "a file that is not there yet")])
    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else f"a core of {processor()}"
    kind = known(name) if gpu else CORE
    if kind is None:
        raise ConfigError([Problem("calibrate", name, f"a card of the table: {', '.join(DEVICES)}")])
    if not gpu:
        torch.set_num_threads(1)
    where = f"{name}, torch {torch.__version__}, {time.strftime('%F')}"
    found = measured(load or (CARD if gpu else ONE_CORE), kind, torch.device("cuda" if gpu else "cpu"), where)
    write(file, found)
    return found


def processor() -> str:
    """What this machine's processor calls itself."""
    told = Path("/proc/cpuinfo").read_text("utf-8").partition("model name")[2]
    return told.partition(":")[2].partition("\n")[0].strip() or "an unknown processor"


def measured(load: Load, kind: Device, device: torch.device, where: str) -> Calibration:
    """The calibration of a card of this kind."""
    bench = Bench(load, kind, device)
    copy = bench.copy()
    fp8 = bench.products(fp8=True) if has_fp8(device) else shipped().products["fp8"]
    attention = [(float(width), float(tokens), bench.attention(width, tokens)) for width, tokens in load.attention]
    rate = copy * kind.bandwidth
    return Calibration(
        device=kind.name,
        measured=where,
        products={"bf16": bench.products(), "fp8": fp8},
        copy=copy,
        pointwise=bench.gates() / rate,
        attention=attention,
        attention_in_step=bench.attention_beside_products(*load.attention[-1], attention[-1][2]),
        loss_passes=bench.loss_passes(rate),
        quantise_bytes=shipped().quantise_bytes,
        launch_seconds=bench.launch() if device.type == "cuda" else None,
        context_bytes=context_bytes() if device.type == "cuda" else None,
    )


def has_fp8(device: torch.device) -> bool:
    """Whether the card multiplies in eight bits."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


@dataclass(frozen=True)
class Bench:
    """Times a load on a device."""

    load: Load
    kind: Device
    device: torch.device

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one time of `work`, the mean over as long as the load says, after as long again."""
        now = time.perf_counter if self.device.type == "cuda" else time.process_time
        for measure in (False, True):
            start, times = now(), 0
            while times == 0 or now() - start < self.load.seconds:
                for _ in range(4):
                    work()
                times += 4
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
            if measure:
                return (now() - start) / times
        raise AssertionError

    @property
    def dtype(self) -> torch.dtype:
        """What is trained in: bf16 on a card, fp32 on a core."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def random(self, *shape: int, grad: bool = False) -> Tensor:
        """Numbers in what is trained in."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype).requires_grad_(grad)

    def products(self, *, fp8: bool = False) -> list[tuple[float, float]]:
        """Points of (FLOPs, part of the peak), of square weights of each width."""
        points = []
        for width in self.load.widths:
            x, weight = self.random(self.load.tokens, width), self.random(width, width)
            flops = 2.0 * self.load.tokens * width**2
            took = self.seconds(scaled(x, weight) if fp8 else lambda x=x, weight=weight: x @ weight)  # type: ignore[misc]
            points.append((flops, flops / took / self.kind.peak("fp8" if fp8 else "bf16")))
        return points

    def copy(self) -> float:
        """The part of the memory's bandwidth that a copy reaches."""
        source = self.random(self.load.elements)
        target = torch.empty_like(source)
        took = self.seconds(lambda: target.copy_(source))
        return 2 * self.dtype.itemsize * self.load.elements / took / self.kind.bandwidth

    def gates(self) -> float:
        """Bytes a second, as if in bf16, of the compiled SwiGLU, forward and backward."""
        width = self.load.widths[-1]
        joint = self.random(self.load.tokens, 2 * width, grad=True)
        slope = self.random(self.load.tokens, width)
        compiled = torch.compile(swiglu) if self.device.type == "cuda" else swiglu

        def work() -> None:
            compiled(joint).backward(slope)
            joint.grad = None

        return GATE_BYTES * self.load.tokens * width / self.seconds(work)

    def attention(self, width: int, tokens: int) -> float:
        """FLOP/s of causal attention, forward and backward."""
        work, flops = self.attending(width, tokens)
        return flops / self.seconds(work)

    def attending(self, width: int, tokens: int) -> tuple[Callable[[], None], float]:
        """Causal attention of the load's tokens, forward and backward, and its FLOPs."""
        batch, heads = max(1, self.load.tokens // tokens), self.load.dim // width
        q, k, v = (self.random(batch, heads, tokens, width, grad=True) for _ in range(3))
        slope = self.random(batch, heads, tokens, width)

        def work() -> None:
            F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(slope)
            q.grad = k.grad = v.grad = None

        return work, 7.0 * batch * tokens**2 * heads * width

    def attention_beside_products(self, width: int, tokens: int, alone: float) -> float:
        """The part of attention's rate that is left where products heat the card, as in a step."""
        work, flops = self.attending(width, tokens)
        x, weight = (
            self.random(self.load.tokens, self.load.widths[-1]),
            self.random(self.load.widths[-1], self.load.widths[-1]),
        )
        product = self.seconds(lambda: x @ weight)

        def both() -> None:
            work()
            _ = x @ weight

        beside = max(self.seconds(both) - product, flops / alone)
        return flops / alone / beside

    def loss_passes(self, rate: float) -> float:
        """Passes over the logits in bf16, at `rate` bytes a second, that the loss takes beside its three products."""
        dim, vocabulary = self.load.dim, self.load.vocabulary
        x = self.random(1, self.load.tokens, dim, grad=True)
        weight = (
            self.random(vocabulary, dim) / dim
        ).requires_grad_()  # larger: numbers too small for a core to be quick
        targets = torch.randint(0, vocabulary, (1, self.load.tokens), device=self.device)
        logits = self.random(self.load.tokens, vocabulary)

        def work() -> None:
            linear_cross_entropy(x, weight, targets, vocabulary).backward()
            x.grad = weight.grad = None

        def products() -> None:
            with torch.no_grad():
                _ = x[0] @ weight.T, logits @ weight, logits.T @ x[0]

        extra = max(0.0, self.seconds(work) - self.seconds(products))
        return extra * rate / (BF16 * self.load.tokens * vocabulary)

    def launch(self) -> float:
        """Seconds that the host takes to launch a kernel."""
        one = self.random(1)
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            one.add_(1)
        torch.cuda.synchronize(self.device)
        return (time.perf_counter() - start) / LAUNCHES


def scaled(x: Tensor, weight: Tensor) -> Callable[[], object]:
    """A product in eight bits of what is cast already."""
    one = torch.ones((), device=x.device)
    left, right = x.to(E4M3), weight.to(E4M3)
    return lambda: rows_by_rows(left, right, one, one, torch.bfloat16)


def context_bytes() -> int:
    """Of the card, what CUDA's context and libraries hold beside the allocator."""
    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved())
