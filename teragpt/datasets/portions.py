"""What a mixture is made of, as the setting `data` says it: `web:0.7,code:0.3`, with `:EPOCHS` where one is capped.

Why: the trainer reads by it, and the service, which has no numpy, writes and checks it. It must not know in which order
sources come. No numpy and no torch here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from teragpt.config import ConfigError, Problem

PORTION = re.compile(r"(.+?):(\d*\.?\d+)(?::(\d+))?")
SYNTAX = "a folder or URL, or PLACE:WEIGHT,PLACE:WEIGHT with :EPOCHS after a weight where a source is capped"
LONGEST_PERIOD = 100_000


@dataclass(frozen=True)
class Portion:
    """A source of a mixture: its place, its `weight` above 0, and how often it is read at most (0: any number)."""

    place: str
    weight: Fraction
    epochs: int = 0


def parse_mixture(data: str) -> tuple[Portion, ...]:
    """The portions of the setting `data`; none where it is one place. Raises ConfigError."""
    found = [PORTION.fullmatch(part) for part in data.split(",")]
    if not any(found) or (len(found) == 1 and found[0] and not found[0][3]):  # a URL may end with a port
        return ()
    portions = [Portion(one[1], Fraction(one[2]), int(one[3] or 0)) for one in found if one]
    if len(portions) < len(found) or any(one and one[3] == "0" for one in found):
        raise refused(data, SYNTAX)
    if not all(one.weight for one in portions):
        raise refused(data, "weights above 0 (a source of weight 0 is left out)")
    if len({one.place for one in portions}) < len(portions):
        raise refused(data, "each place once")
    if sum(whole(portions)) > LONGEST_PERIOD:
        raise refused(data, f"weights that are whole parts of at most {LONGEST_PERIOD:,}")
    return tuple(portions)


def refused(data: str, allowed: str) -> ConfigError:
    """The error of a mixture that is none."""
    return ConfigError([Problem("data", data, allowed)])


def written(place: str, weight: float, epochs: int | None = None) -> str:
    """A source as the setting `data` has it."""
    cap = f":{epochs}" if epochs else ""
    return f"{place}:{Decimal(str(weight)):f}{cap}"


def whole(portions: Sequence[Portion]) -> list[int]:
    """The weights as the smallest whole numbers of the same proportions."""
    unit = math.lcm(*(one.weight.denominator for one in portions))
    parts = [int(one.weight * unit) for one in portions]
    return [part // math.gcd(*parts) for part in parts]
