"""Metric points as compressed columns, without loss: what goes in comes out, to the last bit. Pure functions.

Each column is numbers of one kind, as 64-bit integers: themselves, the bits of floats, or decimals without their point.
Of these the differences of the order that leaves the least are kept, a byte plane at a time (Pelkonen et al. 2015,
"Gorilla", keep the bits of single differences; smooth curves, as a learning rate's, leave less at higher orders), and
zlib packs the planes. A column that the trainer makes of others (`DERIVED`) is one constant.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

WHOLE = 1 << 64
LARGEST = 1 << 63
ORDERS = 5  # of differences that are tried: 0 to 4
DECIMALS, LARGEST_DECIMAL = 7, 1e9
ABSENT, NULL, HELD = 0, 1, 2
HEAD = struct.Struct(">I")

Points = Sequence[Mapping[str, Any]]


def pack(points: Points) -> bytes:
    """The points' columns. A point is a flat object of numbers, nulls, and whatever else JSON can say."""
    names = list(dict.fromkeys(name for point in points for name in point))
    head: list[list[Any]] = []
    parts: list[bytes] = []
    for name in names:
        states = bytes(ABSENT if name not in one else NULL if one[name] is None else HELD for one in points)
        packed_states = b"" if states == bytes([HELD]) * len(points) else zlib.compress(states, 9)
        values = [point[name] for point in points if point.get(name) is not None]
        constant = _derived(name, points)
        kind, given, data = _pack(values) if constant is None else ("derived", constant, b"")
        head.append([name, kind, given, len(packed_states), len(data)])
        parts += [packed_states, data]
    told = zlib.compress(json.dumps([len(points), head]).encode(), 9)
    return b"".join([HEAD.pack(len(told)), told, *parts])


def unpack(data: bytes, keys: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The points again, in their order; of their columns only `keys`, where given."""
    (size,) = HEAD.unpack_from(data)
    at = HEAD.size + size
    count, head = json.loads(zlib.decompress(data[HEAD.size : at]))
    places = {}
    for name, kind, given, states, length in head:
        places[name] = (kind, given, data[at : at + states], data[at + states : at + states + length])
        at += states + length
    points: list[dict[str, Any]] = [{} for _ in range(count)]
    wanted = [name for name in places if keys is None or name in keys]
    for name in wanted:
        _fill(points, name, places)
    return points


def _fill(points: list[dict[str, Any]], name: str, places: Mapping[str, tuple[str, Any, bytes, bytes]]) -> None:
    """Put a column into the points."""
    kind, given, packed_states, data = places[name]
    held = [*range(len(points))]
    if packed_states:
        states = zlib.decompress(packed_states)
        held = [place for place, state in enumerate(states) if state == HELD]
        for place, state in enumerate(states):
            if state == NULL:
                points[place][name] = None
    if kind == "derived":
        others, _, value_of = DERIVED[name]
        parts: list[dict[str, Any]] = [{} for _ in points]
        for other in others:
            _fill(parts, other, places)
        values: Iterable[Any] = [value_of(given, *(parts[place][other] for other in others)) for place in held]
    else:
        values = _unpack(kind, given, data)
    for place, value in zip(held, values, strict=True):
        points[place][name] = value


def _pack(values: list[Any]) -> tuple[str, Any, bytes]:
    """The kind of a column, what its kind must know, and its bytes."""
    if values and all(type(value) is int and -LARGEST <= value < LARGEST for value in values):
        return "int", *_planes(values)
    if not values or not all(type(value) is float for value in values):
        return "json", None, zlib.compress(json.dumps(values).encode(), 9)
    if (singles := _singles(values)) is not None:
        return "float32", *_planes(singles)
    if (found := _decimals(values)) is not None:
        places, scaled = found
        order, data = _planes(scaled)
        return "decimal", [places, order], data
    return "float64", *_planes(_integers("d", "q", values))


def _unpack(kind: str, given: Any, data: bytes) -> Iterable[Any]:
    if kind == "json":
        found: list[Any] = json.loads(zlib.decompress(data))
        return found
    order = given[1] if kind == "decimal" else given
    integers = _from_planes(order, data)
    if kind == "decimal":
        scale = 10 ** given[0]
        return [value / scale for value in integers]
    if kind == "int":
        return integers
    wide = kind == "float64"
    found_bits = array("q" if wide else "i", integers)
    return array("d" if wide else "f", found_bits.tobytes())


def _planes(values: Sequence[int]) -> tuple[int, bytes]:
    """The order of the differences that leave the least, and these as packed byte planes."""
    best, order, left = list(values), 0, _bits(values)
    tried = best
    for number in range(1, ORDERS):
        tried = [tried[0] if tried else 0, *(b - a for a, b in pairwise(tried))]
        if (bits := _bits(tried)) < left:
            best, order, left = tried, number, bits
    folded = array("Q", [(value << 1 ^ -(value < 0)) % WHOLE for value in map(_wrapped, best)]).tobytes()
    planes = b"".join(plane for place in range(8) if any(plane := folded[place::8]))
    used = sum(1 << place for place in range(8) if any(folded[place::8]))
    return order, bytes([used]) + len(values).to_bytes(4, "big") + zlib.compress(planes, 9)


def _from_planes(order: int, data: bytes) -> list[int]:
    used, count, planes = data[0], int.from_bytes(data[1:5], "big"), zlib.decompress(data[5:])
    folded, at = bytearray(8 * count), 0
    for place in range(8):
        if used >> place & 1:
            folded[place::8] = planes[at : at + count]
            at += count
    values: list[int] = [value >> 1 ^ -(value & 1) for value in array("Q", bytes(folded))]
    for _ in range(order):
        values = list(accumulate(values))
    return [_wrapped(value) for value in values] if order else values


def _wrapped(value: int) -> int:
    """The 64-bit integer that is equal to it modulo 2^64: differences of far numbers may be larger."""
    return (value + LARGEST) % WHOLE - LARGEST


def _bits(values: Iterable[int]) -> int:
    return sum(value.bit_length() for value in values)


def _integers(kind: str, whole: str, values: Sequence[float]) -> list[int]:
    return array(whole, array(kind, values).tobytes()).tolist()


def _singles(values: Sequence[float]) -> list[int] | None:
    """The bits of floats that are float32, as losses and norms are."""
    try:
        single = array("f", values)
    except OverflowError:
        return None
    if array("d", single).tobytes() != array("d", values).tobytes():
        return None
    return array("i", single.tobytes()).tolist()


def _decimals(values: Sequence[float]) -> tuple[int, list[int]] | None:
    """How many decimals all of them have, and them without the point."""
    if not all(abs(value) < LARGEST_DECIMAL for value in values):
        return None
    wanted = array("d", values).tobytes()
    for places in range(DECIMALS):
        scale = 10**places
        if round(values[0] * scale) / scale == values[0]:
            scaled = [round(value * scale) for value in values]
            if array("d", [value / scale for value in scaled]).tobytes() == wanted:  # by their bits: -0.0 is not 0.0
                return places, scaled
    return None


def _derived(name: str, points: Points) -> float | None:
    """The constant from which, with other columns, every value of this one follows to the last bit; None without."""
    if name not in DERIVED:
        return None
    others, constants, value_of = DERIVED[name]
    columns = [[point.get(other) for point in points if point.get(name) is not None] for other in others]
    made = [point[name] for point in points if point.get(name) is not None]
    if not made or not all(type(one) in {int, float} for column in [made, *columns] for one in column):
        return None
    wanted = array("d", made).tobytes()
    try:
        for constant in constants(made[0], *(column[0] for column in columns)):
            found = [value_of(constant, *rest) for rest in zip(*columns, strict=True)]
            if all(type(one) is float for one in made) and array("d", found).tobytes() == wanted:
                return constant
    except (ZeroDivisionError, OverflowError, ValueError):
        pass
    return None


def _near(value: float) -> list[float]:
    """A number and its neighbours: a quotient is rounded."""
    below, above = math.nextafter(value, -math.inf), math.nextafter(value, math.inf)
    return [value, below, above, math.nextafter(below, -math.inf), math.nextafter(above, math.inf)]


# What the trainer makes of other columns: these, the constants that may have been used, and how.
DERIVED: dict[str, tuple[tuple[str, ...], Callable[..., list[float]], Callable[..., float]]] = {
    "eta_s": (
        ("tokens", "tokens_per_s"),
        lambda made, done, speed: [round(made * speed) + done],
        lambda whole, done, speed: (whole - done) / speed,
    ),
    "mfu": (("tokens_per_s",), lambda made, speed: _near(made / speed), lambda each, speed: each * speed),
}
