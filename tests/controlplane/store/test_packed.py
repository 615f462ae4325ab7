"""Whatever points go into columns comes out of them, to the last bit."""

from __future__ import annotations

import json
import math
import random
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controlplane.store.packed import pack, unpack

NUMBERS = st.one_of(
    st.none(),
    st.integers(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(),
    st.floats(width=32),
    st.decimals(-1000, 1000, places=3).map(float),
)
KEYS = st.sampled_from(["loss", "tokens", "tokens_per_s", "eta_s", "mfu"])


def told(points: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(point, sort_keys=True) for point in points]


@given(st.lists(st.dictionaries(KEYS, NUMBERS), max_size=20))
def test_any_points_come_back_as_they_went_in(points: list[dict[str, Any]]) -> None:
    assert told(unpack(pack(points))) == told(points)


@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=30))
def test_floats_come_back_to_the_last_bit(values: list[float]) -> None:
    found = [point["loss"] for point in unpack(pack([{"loss": value} for value in values]))]
    assert [struct.pack("d", value) for value in found] == [struct.pack("d", value) for value in values]


def training(steps: int, seed: int = 0) -> list[dict[str, Any]]:
    """Points such as the trainer's own, of which no value was rounded."""
    noise, time, tokens = random.Random(seed), 1.8e9, 1 << 19
    points: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        seconds = 0.35 * math.exp(noise.gauss(0, 0.02))
        time, speed = time + seconds, tokens / seconds
        points.append(
            {
                "attempt": 1,
                "seq": step,
                "step": step,
                "time": time,
                "loss": struct.unpack("f", struct.pack("f", 2 + 8 * step**-0.2 + noise.gauss(0, 0.03)))[0],
                "lr": 6e-5 + 2.7e-4 * (1 + math.cos(math.pi * step / steps)),
                "grad_norm": math.sqrt(abs(0.3 + noise.gauss(0, 0.05))),
                "tokens_per_s": speed,
                "tokens": tokens * step,
                "mfu": 7.1e-8 * speed,
                "memory_bytes": 60_000_000_000 + noise.choice([0, 0, 0, 2 << 20]),
                "eta_s": (steps - step) * tokens / speed,
            }
        )
    return points


def test_a_trainers_points_take_at_most_three_bytes_a_value() -> None:
    points = training(4096)
    data = pack(points)
    assert told(unpack(data)) == told(points)
    assert len(data) / sum(len(point.keys() - {"attempt", "seq", "step"}) for point in points) < 3


def test_one_column_can_be_had_without_the_others() -> None:
    points = training(100)
    wanted = {"step", "eta_s"}
    assert unpack(pack(points), wanted) == [{key: point[key] for key in wanted} for point in points]
