"""Tokens that follow prompts, for several prompts at once; each token is read once, its keys and values are kept.

Prompts of a batch are padded on their left. Rotary embeddings tell distances alone, so what matters is only that
nobody attends to the padding: a prompt's tokens do not depend on what else is in the batch. It must not know text.

B rows of a batch, T tokens that are read, S tokens that were, H query heads, G key/value heads, K head width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teragpt.config import ConfigError, Problem

MOST_LOGPROBS = 20
FIRST_ROOM = 128  # tokens that keys and values have room for at first


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Raises ConfigError for every number out of range.

    At most `tokens` of them. `temperature` 0 takes the likeliest; `top_k` 0 and `top_p` 1 switch those filters off. The
    same `seed` draws the same, None draws anew. A text ends before the first of the `stop` strings. With `logprobs`
    each token comes with its log-probability, and with those of so many likeliest ones.
    """

    tokens: int = 200
    temperature: float = 0.6
    top_k: int = 50
    top_p: float = 0.95
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        rules = [
            ("tokens", self.tokens, self.tokens >= 1, "a whole number from 1"),
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "a number from 0 to 100"),
            ("top_k", self.top_k, self.top_k >= 0, "a whole number from 0"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "a number above 0, up to 1"),
            ("seed", self.seed, 0 <= (self.seed or 0) < 1 << 63, "a whole number from 0, below 2^63"),
            ("stop", "", all(self.stop), "strings that are not empty"),
            ("logprobs", self.logprobs, 0 <= (self.logprobs or 0) <= MOST_LOGPROBS, f"0 to {MOST_LOGPROBS}"),
        ]
        problems = [Problem(name, given, allowed) for name, given, good, allowed in rules if not good]
        if problems:
            raise ConfigError(problems)


class Drawn(NamedTuple):
    """A token, its log-probability, and the likeliest tokens with theirs; both as the model gives them, untempered."""

    token: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Generation:
    """Prompts that go on, a token at a time each; `rows` are the places of those that still do.

    Once a row fills the `context`, it goes on from its later half. Raises ConfigError for a model without `attend`.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], context: int, sampling: Sampling) -> None:
        self.model, self.context, self.sampling = model, context, sampling
        self.device = next(model.parameters()).device
        self.parts = [cast("Any", part) for part in model.modules() if hasattr(part, "attend")]
        if not self.parts:
            raise ConfigError([Problem("model", type(model).__name__, "a model whose attention is an `attend`")])
        self.seen = {row: list(prompt[-context:]) for row, prompt in enumerate(prompts)}
        self.generators = [generator(sampling.seed, row) for row in range(len(prompts))]
        self.kept: list[KeyValues] = []
        self.padding = torch.empty(0)

    @property
    def rows(self) -> list[int]:
        """The places of prompts that go on, in order."""
        return list(self.seen)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Drawn]]:
        """The next token of each row that goes on."""
        logits = self.read()
        drawn = draw(logits, [self.generators[row] for row in self.seen], self.sampling)
        for ids, one in zip(self.seen.values(), drawn, strict=True):
            ids.append(one.token)
        return list(zip(self.seen, drawn, strict=True))

    def finish(self, rows: Sequence[int]) -> None:
        """These rows go on no more."""
        stay = torch.tensor([at for at, row in enumerate(self.seen) if row not in rows], device=self.device)
        self.seen = {row: ids for row, ids in self.seen.items() if row not in rows}
        if self.kept and self.seen:
            self.padding = self.padding[stay]
            for one in self.kept:
                one.keep(stay)

    def read(self) -> Tensor:
        """Logits (B, V) after each row's last token, which alone is read, unless nothing was or a row is too long."""
        full = [row for row, ids in self.seen.items() if len(ids) > self.context]
        for row in full:
            self.seen[row] = self.seen[row][-max(1, self.context // 2) :]
        if full or not self.kept:
            longest = max(map(len, self.seen.values()))
            read = [[0] * (longest - len(ids)) + ids for ids in self.seen.values()]
            self.padding = torch.tensor([longest - len(ids) for ids in self.seen.values()], device=self.device)
            self.kept = [KeyValues() for _ in self.parts]
        else:
            read = [ids[-1:] for ids in self.seen.values()]
        ids = torch.tensor(read, device=self.device)
        start = self.kept[0].length
        positions = torch.arange(start, start + ids.size(1), device=self.device)
        mask = visible(positions, self.padding) if bool(self.padding.any()) else None
        for one in self.kept:
            one.mask = mask
        with attending(self.parts, self.kept):
            logits: Tensor = self.model(ids, positions)
        return logits[:, -1]


class KeyValues:
    """An `attend` that keeps a layer's keys and values, in memory that is doubled when it is full.

    `mask` (B, 1, T, S) says which of them a query sees; None: all that are not later than itself.
    """

    def __init__(self) -> None:
        self.length = 0
        self.mask: Tensor | None = None
        self.keys = self.values = torch.empty(0)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of queries (B, H, T, K) over the keys and values (B, G, T, K) that come, and those that were."""
        start, end = self.length, self.length + k.size(2)
        if start == 0 or end > self.keys.size(2):
            self.keys, self.values = (self.grown(old, new, end) for old, new in ((self.keys, k), (self.values, v)))
        self.keys[:, :, start:end], self.values[:, :, start:end] = k, v
        self.length = end
        causal = self.mask is None and q.size(2) > 1
        seen = self.keys[:, :, :end], self.values[:, :, :end]
        grouped = q.size(1) != k.size(1)
        return F.scaled_dot_product_attention(q, *seen, attn_mask=self.mask, is_causal=causal, enable_gqa=grouped)

    def grown(self, old: Tensor, new: Tensor, end: int) -> Tensor:
        """Memory of the same kind as `new` for twice the tokens, with the old ones in it."""
        made = new.new_empty(*new.shape[:2], max(2 * end, FIRST_ROOM), new.size(3))
        if self.length:
            made[:, :, : self.length] = old[:, :, : self.length]
        return made

    def keep(self, rows: Tensor) -> None:
        """Keep the keys and values of some rows alone."""
        self.keys, self.values = self.keys[rows], self.values[rows]


@contextmanager
def attending(parts: Sequence[Any], kept: Sequence[KeyValues]) -> Generator[None]:
    """Have a model's parts attend with what was kept; afterwards they attend as they did, so that others may go on."""
    before = [part.attend for part in parts]
    for part, one in zip(parts, kept, strict=True):
        part.attend = one
    try:
        yield
    finally:
        for part, one in zip(parts, before, strict=True):
            part.attend = one


def visible(positions: Tensor, padding: Tensor) -> Tensor:
    """Which of the positions up to the last one each of `positions` (T) attends to: (B, 1, T, S).

    None to its row's first `padding` (B), but for padding to itself: a row of a softmax over nothing would be NaN.
    """
    keys = torch.arange(int(positions[-1]) + 1, device=positions.device)
    real = keys >= padding.unsqueeze(1)  # (B, S)
    earlier = keys <= positions.unsqueeze(1)  # (T, S)
    itself = keys == positions.unsqueeze(1)
    return ((real.unsqueeze(1) & earlier) | itself).unsqueeze(1)


def generator(seed: int | None, row: int) -> torch.Generator:
    """What a row's tokens are drawn with; rows of one prompt differ."""
    made = torch.Generator()
    made.seed() if seed is None else made.manual_seed(seed + row)
    return made


def draw(logits: Tensor, generators: Sequence[torch.Generator], sampling: Sampling) -> list[Drawn]:
    """A token for each row of logits (B, V): one of the `top_k` likeliest, and of the fewest that share `top_p`."""
    logits = logits.float()
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=1, keepdim=True).cpu()
    else:
        chances = (logits / sampling.temperature).softmax(dim=1)
        values, order = (one.cpu() for one in chances.topk(min(sampling.top_k or chances.size(1), chances.size(1))))
        values[values.cumsum(dim=1) - values >= sampling.top_p] = 0.0
        places = [torch.multinomial(row, 1, generator=one) for row, one in zip(values, generators, strict=True)]
        tokens = order.gather(1, torch.stack(places))
    if sampling.logprobs is None:
        return [Drawn(token) for token in tokens.flatten().tolist()]
    told = logits.log_softmax(dim=1).cpu()
    best, names = told.topk(sampling.logprobs)
    likeliest = [tuple(zip(*row, strict=True)) for row in zip(names.tolist(), best.tolist(), strict=True)]
    own = told.gather(1, tokens)
    return [Drawn(*row) for row in zip(tokens.flatten().tolist(), own.flatten().tolist(), likeliest, strict=True)]
