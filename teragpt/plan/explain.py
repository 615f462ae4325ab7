"""Every formula of a plan, with the numbers that it was given and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from teragpt.plan.calibration import HOP_SECONDS, NETWORK_PART, NVLINK_PART
from teragpt.plan.forecast import GPU_HOURS_BETWEEN_FAILURES, RESTART_SECONDS
from teragpt.plan.memory import LEAST_FREE, LEFT_FREE, MOST_FREE, MUON_HELD
from teragpt.plan.planner import Plan
from teragpt.plan.report import giga, seconds
from teragpt.plan.step import GATE_BYTES, MUON_BYTES, MUON_TURNS, NORM_BYTES, ROTARY_BYTES, UPDATE_BYTES, waits

SCALING = "docs/scaling.md"
COLLECTIVES = f"{SCALING}; nccl-tests issues 212 and 290; llm-foundry's 7b on 128 and 512 H100s"
FAILURES = "Dubey et al. 2024, section 3.3.4: 419 in 54 days on 16,384 H100s"
MEMORY = {
    "parameters": "fp32 masters of a rank's slice, exact",
    "gradients": "fp32, exact",
    "optimizer": "AdamW's two moments or Muon's one, exact",
    "activations": "what blocks keep x layers of a stage x micro-batches alive",
    "one block's backward": "what is computed again, and slopes of the widest product",
    "copies of weights": "q, k, v and gate, up side by side in bf16, and in fp8 all of a block's turned, of all layers "
    "where nothing is computed again",
    "weights in bf16": "all on a GPU that is alone; else two gathered blocks and the ends, or the whole stage",
    "gradients to be scattered": "two blocks in bf16 and fp32; the whole stage in fp32 where it stays gathered",
    "process": "a rank before its state, measured once on CPU cores",
    "gathered weights": "of all blocks in fp32, and gradients on their way",
    "logits and loss": "a chunk of logits in bf16, the tokens' gradient, the head's in fp32 and in bf16 twice",
    "whole matrices": f"{MUON_HELD} bytes an element of those that Muon makes orthogonal at once",
    "left free": f"{LEFT_FREE:.0%} of the data sheet's bytes, {LEAST_FREE / 1e9:g} GB at least or {MOST_FREE:.0%} of a "
    "small card, a policy: CUDA, NCCL, slack, errors of the above",
}


class Line(NamedTuple):
    """`what` a formula gives, the `formula` with its numbers, its `source`."""

    what: str
    formula: str
    source: str


def explain(plan: Plan) -> Iterator[Line]:
    """All of them, in the order of the table."""
    yield from memory(plan)
    yield from computing(plan)
    yield from travelling(plan)
    yield from whole_run(plan)


def memory(plan: Plan) -> Iterator[Line]:
    """Bytes by kind."""
    for kind, taken in plan.best.memory.kinds.items():
        yield Line(kind, f"{MEMORY[kind]} = {giga(taken)}", "teragpt/plan/memory.py")


def computing(plan: Plan) -> Iterator[Line]:
    """What a rank computes in a step."""
    cut, speed, config, parts = plan.best.cut, plan.speed, plan.config, plan.best.step.parts
    device, found, tokens = plan.cluster.device, plan.speed.calibration, plan.best.cut.tokens(plan.config.context)
    reached, peak = found.product(1e11, config.precision), device.peak(config.precision) / 1e12
    work = f"6 FLOPs a weight and token (8 with recompute full), {cut.count:,} x {tokens:,} tokens"
    at = f"{reached:.3g} of {peak:,.4g} TFLOP/s"
    yield Line("products", f"{work}, at {at} = {seconds(parts['products'])}", f"{device.source}; {found.measured}")
    rate = found.attention_rate(config.head_dim, config.context) / speed.measured_on.bf16
    work = f"7 x tokens x {config.context:,} x {config.q_dim:,} FLOPs a layer, of which a mask leaves half"
    at = f"{rate:.3g} of {device.bf16 / 1e12:,.4g} TFLOP/s"
    yield Line("attention", f"{work}, at {at} = {seconds(parts['attention'])}", found.measured)
    work = f"{GATE_BYTES} x ffn + {ROTARY_BYTES} x (q + kv) + {NORM_BYTES} x dim bytes a token and layer"
    bandwidth = f"of {device.bandwidth / 1e9:,.0f} GB/s"
    at = f"{found.copy:.3g} x {found.pointwise:.3g} {bandwidth}"
    took = seconds(parts["passes over memory"])
    yield Line("passes over memory", f"{work}, at {at} = {took}", found.measured)
    work = f"{UPDATE_BYTES} bytes a parameter of a slice, at {found.copy:.3g} {bandwidth}"
    if config.optimizer == "muon":
        work += f"; of blocks {MUON_BYTES}, and {MUON_TURNS} x 3 products of each matrix"
    yield Line("optimizer", f"{work} = {seconds(parts['optimizer'])}", found.measured)


def travelling(plan: Plan) -> Iterator[Line]:
    """What travels, what of it sticks out behind compute, and who waits."""
    stages, step, cluster = plan.best.cut.stages, plan.best.step, plan.cluster
    within = f"{NVLINK_PART:.2f} of {cluster.device.link / 1e9:,.0f} GB/s within a node"
    beyond = f"{NETWORK_PART:.2f} of {cluster.network.rate / 1e9:,.4g} GB/s an adapter between nodes"
    ring = f"a ring's bytes at {within}, {beyond}, and {HOP_SECONDS * 1e6:.1f} us a rank"
    shown = {kind: step.parts[kind] for kind in ("tp", "cp", "dp") if kind in step.parts}
    for kind, took in (shown | step.travels).items():
        yield Line(kind, f"{ring} = {seconds(took)}", COLLECTIVES)
    wait, sent = (step.parts.get(kind) for kind in ("pipeline's wait", "pipeline's sends"))
    if wait is not None and sent is not None:
        turns = f"(pp - 1) / chunks = {(stages.pp - 1) / stages.chunks:.3g} micro-batches of the slowest stage"
        yield Line("pipeline's wait", f"{turns} = {seconds(wait)}", SCALING)
        sends = f"{waits(stages.pp, stages.chunks, plan.best.cut.count):,.4g} sends of a micro-batch's activations"
        yield Line("pipeline's sends", f"{sends} = {seconds(sent)}", COLLECTIVES)


def whole_run(plan: Plan) -> Iterator[Line]:
    """Failures, and how often a checkpoint is written."""
    whole, gpus = plan.forecast, plan.best.cut.stages.ranks
    rate = f"{whole.seconds / 3600:,.3g} h x {gpus:,} GPUs / {GPU_HOURS_BETWEEN_FAILURES:,.0f} GPU-hours"
    each = f"each loses half an interval and {RESTART_SECONDS:.0f} s (assumed)"
    yield Line("failures", f"{rate} = {whole.failures:,.3g}; {each}", FAILURES)
    between = f"d = {seconds(whole.checkpoint_stall)}, M = {GPU_HOURS_BETWEEN_FAILURES / gpus:,.3g} h"
    every = f"sqrt(2 d M) and its next terms, {between}: every {seconds(whole.checkpoint_seconds)}"
    yield Line("checkpoints", every, f"Young 1974; Daly 2006, eq. 37; {plan.speed.calibration.measured}")
