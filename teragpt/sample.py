"""Text from a trained model, a token at a time: `teragpt sample RUN "def main("`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from teragpt.config import ConfigError, Problem
from teragpt.model import Past, TeraGPT
from teragpt.trained import load

UNFINISHED = "�"  # what a character decodes to while bytes of it are missing


def stream(
    folder: Path | str,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 0.6,
    top_k: int = 50,
    top_p: float = 0.95,
    seed: int | None = None,
) -> Iterator[str]:
    """Pieces of text that continue the prompt, until the model ends its document or `tokens` are drawn.

    `temperature` 0 takes the likeliest token; `top_k` 0 and `top_p` 1 switch those filters off. The same seed gives
    the same text. Raises ConfigError for numbers out of range and for a folder without a checkpoint.
    """
    check(tokens, temperature, top_k, top_p)
    model, tokenizer, config = load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    ids = tokenizer.encode(prompt) or [tokenizer.end]
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    start = shown = len(tokenizer.decode(ids)) if prompt else 0
    for token in generate(model, ids, config.context, generator, temperature, top_k, top_p, tokens):
        if token == tokenizer.end:
            break
        ids.append(token)
        text = tokenizer.decode(ids if prompt else ids[1:])
        if len(text) > shown and not text.endswith(UNFINISHED):
            yield text[shown:]
            shown = len(text)
    text = tokenizer.decode(ids if prompt else ids[1:])
    if len(text) > max(shown, start):
        yield text[shown:]


def check(tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raise ConfigError for every number out of range."""
    rules = [
        ("tokens", tokens, tokens >= 1, "a whole number from 1"),
        ("temperature", temperature, 0 <= temperature <= 100, "a number from 0 to 100"),
        ("top_k", top_k, top_k >= 0, "a whole number from 0"),
        ("top_p", top_p, 0 < top_p <= 1, "a number above 0, up to 1"),
    ]
    problems = [Problem(name, given, allowed) for name, given, good, allowed in rules if not good]
    if problems:
        raise ConfigError(problems)


@torch.inference_mode()
def generate(
    model: TeraGPT,
    prompt: list[int],
    context: int,
    generator: torch.Generator,
    temperature: float,
    top_k: int,
    top_p: float,
    tokens: int,
) -> Iterator[int]:
    """Token ids that follow the prompt. The keys and values of what was read are cached.

    Once the context is full, the model goes on from its later half.
    """
    device = next(model.parameters()).device
    seen, cache, unread = list(prompt[-context:]), fresh(model), list(prompt[-context:])
    for _ in range(tokens):
        if len(seen) >= context:
            seen = seen[-context // 2 :]
            cache, unread = fresh(model), list(seen)
        positions = torch.arange(len(seen) - len(unread), len(seen), device=device)
        logits = model(torch.tensor([unread], device=device), positions, cache=cache)[0, -1]
        token = draw(logits.float().cpu(), generator, temperature, top_k, top_p)
        yield token
        seen.append(token)
        unread = [token]


def fresh(model: TeraGPT) -> list[Past]:
    """An empty cache for every layer."""
    return [[] for _ in model.layers]


def draw(logits: Tensor, generator: torch.Generator, temperature: float, top_k: int, top_p: float) -> int:
    """A token drawn from logits (V), among the `top_k` likeliest and the fewest that hold `top_p` of the mass."""
    if temperature == 0:
        return int(logits.argmax())
    values, order = logits.sort(descending=True)
    chances = (values / temperature).softmax(dim=0)
    beyond = chances.cumsum(0) - chances >= top_p
    if top_k:
        beyond[top_k:] = True
    chances[beyond] = 0.0
    return int(order[torch.multinomial(chances, 1, generator=generator)])
