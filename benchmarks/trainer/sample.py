"""Tokens that a model draws in a second of CPU: keys and values kept, none kept, and by transformers' `generate`.

All have the same weights and draw the likeliest of each 1,000 tokens after a prompt of 16, on one thread, in turn; the
two that keep have to draw the same ones. CPU time is counted, so that what else runs hardly matters; without a cache
once is enough. `python benchmarks/trainer/sample.py [ROUNDS [DIM DEPTH HEADS]]` prints the ratios of the medians
(limits: 10 times none kept, 1.0 times transformers).
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers.models.qwen3 import Qwen3Config, Qwen3ForCausalLM

from teragpt.config import resolve
from teragpt.exchange.export import configuration, exported
from teragpt.inference.generate import Generation, Sampling
from teragpt.model import TeraGPT
from teragpt.tokenization.tokenizer import train_bpe

TOKENS, VOCABULARY, THREADS = 1000, 2048, 1
CONTEXT = 2048
PROMPT = list(range(100, 116))
LIMITS = {"to none kept": 10.0, "to transformers": 1.0}


def models(dim: int, depth: int, heads: int) -> tuple[TeraGPT, Qwen3ForCausalLM]:
    """One model twice: ours, and transformers' with its weights."""
    shape = {
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "kv_heads": heads,
        "num_tokens": VOCABULARY,
        "context": CONTEXT,
    }
    config = resolve({"size": "tiny", **shape, "tied": True})
    torch.manual_seed(0)
    ours = TeraGPT(dim, depth, heads, VOCABULARY, ffn=config.ffn, tied=True, rope_theta=config.rope_theta).eval()
    said: dict[str, Any] = {**configuration(config, train_bpe(["x"], 300)), "eos_token_id": None}
    theirs = Qwen3ForCausalLM(Qwen3Config(**said)).eval()
    weights = {exported(name): weight for name, weight in ours.state_dict().items()}
    theirs.load_state_dict({**weights, "lm_head.weight": ours.embed_tokens.weight})
    return ours, theirs


def kept(model: TeraGPT) -> list[int]:
    """Our tokens."""
    generation = Generation(model, [PROMPT], CONTEXT, Sampling(temperature=0))
    return [generation.step()[0][1].token for _ in range(TOKENS)]


@torch.inference_mode()
def none_kept(model: TeraGPT) -> list[int]:
    """Our tokens, the whole text read again for each."""
    ids = list(PROMPT)
    for _ in range(TOKENS):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(PROMPT) :]


def generate(model: Any) -> list[int]:
    """The tokens of a model of transformers, with its cache."""
    ids = torch.tensor([PROMPT])
    how: dict[str, Any] = {"do_sample": False, "use_cache": True, "max_new_tokens": TOKENS, "pad_token_id": 0}
    made: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), **how)[0, len(PROMPT) :].tolist()
    return made


def main(rounds: int, dim: int, depth: int, heads: int) -> None:
    """Draw in turn, and print the medians and their ratios."""
    torch.set_num_threads(THREADS)
    ours, theirs = models(dim, depth, heads)
    rates: dict[str, list[float]] = {"kept": [], "transformers": [], "none kept": []}

    def timed(name: str, work: Callable[[], list[int]]) -> list[int]:
        start = time.process_time()
        tokens = work()
        rates[name].append(round(len(tokens) / (time.process_time() - start), 1))
        return tokens

    for _ in range(rounds):
        mine = timed("kept", lambda: kept(ours))
        others = timed("transformers", lambda: generate(theirs))
        assert mine == others
    timed("none kept", lambda: none_kept(ours))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        "to none kept": medians["kept"] / medians["none kept"],
        "to transformers": medians["kept"] / medians["transformers"],
    }
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{THREADS} thread, {platform.machine()}",
        "model": {"dim": dim, "depth": depth, "heads": heads},
        "tokens_per_cpu_s": rates,
        "ratio": {name: round(value, 2) for name, value in ratios.items()},
        "limit": LIMITS,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(given[0] if given else 3, *(given[1:4] or (256, 4, 4)))
