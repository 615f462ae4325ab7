"""What GPUs and the links between them can do by their makers' data sheets, in one table. It knows no model.

Numbers here are peaks; which part of them a step of training reaches stands in `calibration`. Bytes are those of the
data sheets, decimal: what a card shows is a little more, and that difference is part of what a plan leaves free.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from teragpt.config import ConfigError, Problem

GB = 10**9
TERA = 1e12


@dataclass(frozen=True)
class Device:
    """A GPU, or a core of a CPU: dense FLOP/s by precision, bytes of memory and bytes a second to it.

    `link`: bytes a second each way to the other devices of a node, of which there are usually `per_node`. `network`:
    the link between nodes that such cards are sold with, a name of `LINKS`. `watts`: of the board at its limit.
    """

    name: str
    label: str
    bf16: float
    fp8: float
    memory: int
    bandwidth: float
    link: float
    watts: float
    per_node: int
    network: str
    source: str

    def peak(self, precision: str) -> float:
        """Dense FLOP/s of products in this precision."""
        return self.fp8 if precision == "fp8" else self.bf16


@dataclass(frozen=True)
class Link:
    """A link between nodes, or between the GPUs of one: bytes a second each way for each GPU."""

    name: str
    rate: float
    source: str


NVIDIA_A100 = "NVIDIA A100 data sheet, 2022; NVLink 3: 600 GB/s both ways"
NVIDIA_H100 = "NVIDIA H100 data sheet, 2023 (half of what it says with sparsity)"

DEVICES = {
    one.name: one
    for one in (
        Device(
            "a100-40gb", "A100-SXM4-40GB", 312 * TERA, 312 * TERA, 40 * GB, 1555e9, 300e9, 400, 8, "ib-hdr", NVIDIA_A100
        ),
        Device("a100", "A100-SXM4-80GB", 312 * TERA, 312 * TERA, 80 * GB, 2039e9, 300e9, 400, 8, "ib-hdr", NVIDIA_A100),
        Device(
            "h100",
            "H100 SXM",
            989.4 * TERA,
            1978.9 * TERA,
            80 * GB,
            3352e9,
            450e9,
            700,
            8,
            "ib-ndr",
            f"{NVIDIA_H100}; NVLink 4: 900 GB/s both ways",
        ),
        Device(
            "h100-pcie",
            "H100 PCIe",
            756 * TERA,
            1513 * TERA,
            80 * GB,
            2000e9,
            64e9,
            350,
            8,
            "ib-ndr",
            f"{NVIDIA_H100}; PCIe 5 x16: 128 GB/s both ways, no bridge",
        ),
        Device(
            "h200",
            "H200",
            989.4 * TERA,
            1978.9 * TERA,
            141 * GB,
            4800e9,
            450e9,
            700,
            8,
            "ib-ndr",
            "NVIDIA H200 data sheet, 2024 (half of what it says with sparsity); NVLink 4: 900 GB/s both ways",
        ),
        Device(
            "b200",
            "B200",
            2250 * TERA,
            4500 * TERA,
            180 * GB,
            7700e9,
            900e9,
            1000,
            8,
            "ib-ndr",
            "NVIDIA HGX B200 data sheet, 2024 (half of what it says with sparsity); NVLink 5: 1,800 GB/s both ways",
        ),
        Device(
            "l40s",
            "L40S",
            362 * TERA,
            733 * TERA,
            48 * GB,
            864e9,
            32e9,
            350,
            8,
            "ethernet-100",
            "NVIDIA L40S data sheet, 2023 (half of what it says with sparsity); PCIe 4 x16: 64 GB/s both ways",
        ),
        Device(
            "mi300x",
            "MI300X",
            1307.4 * TERA,
            2614.9 * TERA,
            192 * GB,
            5300e9,
            448e9,
            750,
            8,
            "ib-ndr",
            "AMD Instinct MI300X data sheet, 2023; Infinity Fabric: seven links of 128 GB/s both ways",
        ),
    )
}

# A rank of a run without a GPU, which trains in fp32: that stands for its bf16. Memory is whatever a machine has.
CORE = Device(
    "cpu-core",
    "CPU core",
    0.128 * TERA,
    0.128 * TERA,
    8 * GB,
    307.2e9 / 56,
    2e9,
    350 / 56,
    56,
    "ethernet-100",
    "Intel Xeon Platinum 8480+ data sheet, 2023, of whose 56 cores each does 64 FLOPs in fp32 a cycle at 2 GHz; eight "
    "channels of DDR5-4800; 8 GB and 2 GB/s between processes are assumptions",
)

LINKS = {
    one.name: one
    for one in (
        Link("ib-xdr", 100e9, "InfiniBand XDR, 800 Gb/s"),
        Link("ib-ndr", 50e9, "InfiniBand NDR, 400 Gb/s, an adapter for each GPU"),
        Link("ib-hdr", 25e9, "InfiniBand HDR, 200 Gb/s, an adapter for each GPU"),
        Link("roce-400", 50e9, "Ethernet, 400 Gb/s, an adapter for each GPU"),
        Link("roce-200", 25e9, "Ethernet, 200 Gb/s, an adapter for each GPU"),
        Link("ethernet-100", 12.5e9, "Ethernet, 100 Gb/s, an adapter for each GPU"),
    )
}


NODE_LINKS = {
    one.name: one
    for one in (
        Link("nvlink-5", 900e9, "NVIDIA NVLink 5, 18 links of 100 GB/s both ways"),
        Link("nvlink-4", 450e9, "NVIDIA NVLink 4, 18 links of 50 GB/s both ways"),
        Link("nvlink-3", 300e9, "NVIDIA NVLink 3, 12 links of 50 GB/s both ways"),
        Link("nvlink-2", 150e9, "NVIDIA NVLink 2, 6 links of 50 GB/s both ways"),
        Link("pcie-6", 128e9, "PCIe 6, 16 lanes, 256 GB/s both ways"),
        Link("pcie-5", 64e9, "PCIe 5, 16 lanes, 128 GB/s both ways"),
        Link("pcie-4", 32e9, "PCIe 4, 16 lanes, 64 GB/s both ways"),
        Link("pcie-3", 16e9, "PCIe 3, 16 lanes, 32 GB/s both ways"),
    )
}


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind: how many at most, how many share a node, and what links the nodes."""

    device: Device
    gpus: int
    per_node: int
    network: Link

    @property
    def nodes(self) -> int:
        """Nodes that hold them."""
        return -(-self.gpus // self.per_node)


# What a GPU may be described by: the table's column, and its unit there.
NUMBERS = {
    "memory_gb": ("memory", GB),
    "memory_gib": ("memory", 1 << 30),
    "bf16_tflops": ("bf16", TERA),
    "fp8_tflops": ("fp8", TERA),
    "bandwidth_gbs": ("bandwidth", 1e9),
    "link_gbs": ("link", 1e9),
    "watts": ("watts", 1),
    "per_node": ("per_node", 1),
}
WHOLE = {"memory", "per_node"}
MOST = 1e6  # of any of them
MOST_RATE = 1e5  # GB/s of a link
BY_NUMBERS = "NAME:memory_gb=48,bf16_tflops=181,bandwidth_gbs=864"


def device(given: Device | str | Mapping[str, object]) -> Device:
    """The GPU of a name, ours or a driver's or a node's label; of its numbers; or of both, as `h100:memory_gb=94`.

    Raises ConfigError: with the nearest name, or with each number that cannot be.
    """
    if isinstance(given, Device):
        return given
    if not isinstance(given, str):
        return described(given)
    if given.lstrip().startswith("{"):
        try:
            return described(json.loads(given))
        except json.JSONDecodeError as error:
            raise ConfigError(
                [Problem("gpu", given, f"a name, {BY_NUMBERS}, or such numbers in JSON ({error})")]
            ) from None
    name, colon, numbers = given.partition(":")
    if colon:
        pairs = (one.partition("=") for one in numbers.split(","))
        return described({"name": name, **{key.strip(): number(value) for key, _, value in pairs}})
    if found := known(name):
        return found
    near = difflib.get_close_matches(name.lower(), DEVICES, n=1, cutoff=0.3)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ConfigError([Problem("gpu", name, f"{meant}one of {', '.join(DEVICES)}, cpu; or its numbers, {BY_NUMBERS}")])


def number(text: str) -> float | str:
    """A number as it was written; as it is where it is none."""
    try:
        return float(text)
    except ValueError:
        return text


def described(numbers: Mapping[str, object]) -> Device:
    """A GPU by its numbers (`NUMBERS`) and a `name`; the rest is that of the named one, else of the nearest known.

    Raises ConfigError with each number that cannot be, or is missing.
    """
    name = str(numbers.get("name") or "GPU")
    given = {key: value for key, value in numbers.items() if key != "name"}
    base = known(name)
    if problems := list(misdescribed(given, required=base is None)):
        raise ConfigError(problems)
    values = {NUMBERS[key][0]: float(str(value)) * NUMBERS[key][1] for key, value in given.items()}
    base = base or min(DEVICES.values(), key=lambda one: distance(one, values))
    values.setdefault("fp8", base.fp8 / base.bf16 * values.get("bf16", base.bf16))
    changed: dict[str, Any] = {key: int(value) if key in WHOLE else value for key, value in values.items()}
    source = f"given: {', '.join(f'{key} {value}' for key, value in given.items())}; the rest as of {base.label}"
    label = base.label if known(name) else name
    return replace(base, name=f"{name} by its numbers", label=f"{label} by its numbers", source=source, **changed)


def misdescribed(given: Mapping[str, object], *, required: bool) -> Iterator[Problem]:
    """What is wrong with a GPU's numbers; what is `required` of one whose name is not known."""
    for key, value in given.items():
        if key not in NUMBERS:
            yield Problem(f"gpu.{key}", value, f"one of {', '.join(NUMBERS)}, name")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST:
            yield Problem(f"gpu.{key}", value, f"a number above 0, up to {MOST:,.0f}")
        elif key == "per_node" and value != int(value):
            yield Problem(f"gpu.{key}", value, "a whole number")
    if {"memory_gb", "memory_gib"} <= given.keys():
        yield Problem("gpu.memory_gib", given["memory_gib"], "without memory_gb")
    for need in (("memory_gb", "memory_gib"), ("bf16_tflops",), ("bandwidth_gbs",)) if required else ():
        if not given.keys() & set(need):
            yield Problem(f"gpu.{need[0]}", None, "a number: of a GPU that is not in the table it has to be given")


def distance(one: Device, values: Mapping[str, float]) -> float:
    """How far a card is from one with these numbers: doublings of products and of memory."""
    return abs(math.log2(one.bf16 / values["bf16"])) + abs(math.log2(one.memory / values["memory"]))


def known(name: str | None) -> Device | None:
    """As `device`; None for what is not in the table."""
    words = set(re.split(r"[^a-z0-9]+", (name or "").lower()))
    if (name or "").lower() in {"cpu", CORE.name}:
        return CORE
    if (name or "").lower() in DEVICES:
        return DEVICES[(name or "").lower()]
    if "a100" in words:
        return DEVICES["a100-40gb" if words & {"40gb", "40"} else "a100"]
    if "h100" in words:
        return DEVICES["h100-pcie" if "pcie" in words else "h100"]
    return next((DEVICES[one] for one in ("h200", "b200", "l40s", "mi300x") if one in words), None)


def link(given: str | float) -> Link:
    """The link between nodes of a name, or of a number of GB/s each way for each GPU. Raises ConfigError."""
    return linked("link", given, LINKS)


def node_link(given: str | float) -> Link:
    """The same of the link between the GPUs of a node."""
    return linked("node_link", given, NODE_LINKS)


def linked(field: str, given: str | float, known: Mapping[str, Link]) -> Link:
    """One of the known links, or one of its own rate."""
    name = str(given).strip().lower()
    if name in known:
        return known[name]
    rate = number(name) if not isinstance(given, bool) else ""
    if isinstance(rate, float) and 0 < rate < MOST_RATE:
        return Link(f"{rate:g} GB/s", rate * 1e9, "given")
    allowed = f"one of {', '.join(known)}, or GB/s each way for each GPU, above 0 and below {MOST_RATE:,.0f}"
    raise ConfigError([Problem(field, given, allowed)])
