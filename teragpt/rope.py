"""How rotary frequencies are scaled, as `transformers` has it: for texts longer than what a model first learned from.

A line of text says it: llama3:factor=8,low_freq_factor=1,high_freq_factor=4,original_max_position_embeddings=8192.
It needs no torch: ops.py scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

ORIGINAL = "original_max_position_embeddings"


class Names(NamedTuple):
    """Numbers of a kind: those that it needs, and those that it may have."""

    needed: tuple[str, ...]
    possible: tuple[str, ...] = ()


SCALINGS = {
    "linear": Names(("factor",)),  # Chen et al. 2023, arxiv.org/abs/2306.15595
    "llama3": Names(("factor", "low_freq_factor", "high_freq_factor", ORIGINAL)),  # Grattafiori et al. 2024, Llama 3.1
    "yarn": Names(("factor", ORIGINAL), ("attention_factor", "beta_fast", "beta_slow")),  # Peng et al. 2023
}
ALLOWED = "; ".join(f"{kind}:{','.join(f'{name}=N' for name in names.needed)}" for kind, names in SCALINGS.items())


@dataclass(frozen=True)
class Scaling:
    """A kind of scaling and its numbers."""

    kind: str
    numbers: Mapping[str, float]

    def __str__(self) -> str:
        said = (f"{name}={int(one) if one == int(one) else one!r}" for name, one in self.numbers.items())
        return f"{self.kind}:{','.join(said)}"

    @property
    def strength(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        return self.numbers.get("attention_factor", 0.1 * math.log(self.numbers["factor"]) + 1)


def scaling(text: str | None) -> Scaling | None:
    """What a text says; None where there is none. Raises ValueError that says what is allowed."""
    if not text:
        return None
    kind, _, rest = text.partition(":")
    pairs = [one.partition("=") for one in rest.split(",")]
    try:
        numbers = {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        raise ValueError(ALLOWED) from None
    if len(numbers) < len(pairs):
        raise ValueError(ALLOWED)
    return checked(kind.strip(), numbers)


def checked(kind: str, numbers: Mapping[str, float]) -> Scaling:
    """A scaling of these numbers. Raises ValueError that says what is allowed."""
    names = SCALINGS.get(kind)
    if names is None:
        raise ValueError(ALLOWED)
    if not {*names.needed} <= numbers.keys() <= {*names.needed, *names.possible}:
        more = f", and as you like {', '.join(names.possible)}" if names.possible else ""
        raise ValueError(f"with {kind} {', '.join(names.needed)}{more}")
    for name, value in numbers.items():
        least = 1 if name in {"factor", ORIGINAL} else 0
        if not (math.isfinite(value) and value >= least and value > 0):
            raise ValueError(f"{name} {'of 1 or more' if least else 'above 0'}")
    low, high = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ("beta_slow", "beta_fast")
    if numbers.get(low, 1) >= numbers.get(high, 32):
        raise ValueError(f"a {low} below {high}")
    return Scaling(kind, {name: float(numbers[name]) for name in (*names.needed, *names.possible) if name in numbers})
