"""A run on CPU cores: its layout is what its settings say, so that it is only timed and its bytes counted.

Where there are GPUs, `search` chooses.
"""

from __future__ import annotations

from dataclasses import replace

from teragpt.activations import activation_bytes
from teragpt.config import ConfigError, Problem
from teragpt.layout import alive, layout
from teragpt.plan.choice import Option
from teragpt.plan.hardware import CORE, Device
from teragpt.plan.memory import FP32, START, Cut, Memory, buffers, layers_of
from teragpt.plan.search import Search
from teragpt.sizes import padded

RESIDENT = 930_000_000  # bytes of a rank of `tiny` that are neither state nor its step's (docs/notebook.md)
LOGITS = 1 << 21  # of one chunk of the loss (ops.LOGITS_CHUNK), in fp32 three times


def cores(each: float) -> Device:
    """A rank with so many cores, or with a part of one: as quick as they are together, which is the most it can be."""
    return replace(CORE, bf16=CORE.bf16 * each, fp8=CORE.fp8 * each, bandwidth=CORE.bandwidth * each)


def on_cores(search: Search) -> Option:
    """The layout of the search's settings over all ranks of its cluster. Raises ConfigError where there is none."""
    config, ranks = search.config, search.clock.cluster.gpus
    stages = layout(config, ranks)
    batches = search.batches(stages)
    if stages.ranks != ranks or not batches:
        raise ConfigError([Problem("gpus", ranks, f"a number that {config.sequences:,} sequences can be cut over")])
    cut = Cut(stages, *batches[0], config.recompute, search.gathers[0], config.recompute_layers)
    return Option(cut, search.clock.step(cut), memory(search, cut))


def memory(search: Search, cut: Cut) -> Memory:
    """Bytes of a process on the first stage; all is in fp32, and what is resident of it counts."""
    config, stages, ledger = search.config, cut.stages, search.ledger
    state, layers = ledger.state(stages, 0), layers_of(config.depth, stages, 0)
    tokens = cut.tokens(config.context)
    each, again = (activation_bytes(config.shape, mode, FP32, stages.tp, stages.cp) for mode in ("none", cut.recompute))
    whole = cut.whole(layers)
    kept = (each * whole + again * (layers - whole)) * tokens * alive(stages, cut.count, 0)
    gathered, scattered = buffers(config, cut, layers, ends=2)
    kinds = {
        "process": RESIDENT,
        "parameters": state.parameters,
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "activations": int(kept),
        "one block's backward": int(tokens * (each - again)),
        "gathered weights": 2 * gathered + scattered,
        "logits and loss": 3 * FP32 * min(LOGITS, tokens * padded(config.num_tokens)),
    }
    return Memory(kinds, kinds, START, ledger.device_memory)
