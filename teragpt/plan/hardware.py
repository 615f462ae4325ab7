"""What GPUs and the links between them can do by their makers' data sheets, in one table. It knows no model.

Numbers here are peaks; which part of them a step of training reaches stands in `calibration`. Bytes are those of the
data sheets, decimal: what a card shows is a little more, and that difference is part of what a plan leaves free.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from teragpt.config import ConfigError, Problem

GB = 10**9
TERA = 1e12


@dataclass(frozen=True)
class Device:
    """A GPU, or a core of a CPU: dense FLOP/s by precision, bytes of memory and bytes a second to it.

    `link`: bytes a second each way to the other devices of a node, of which there are usually `per_node`. `network`:
    the link between nodes that such cards are sold with, a name of `LINKS`. `units`: cores that take tiles of a product
    at once. `watts`: of the board at its limit.
    """

    name: str
    label: str
    bf16: float
    fp8: float
    memory: int
    bandwidth: float
    link: float
    watts: float
    units: int
    per_node: int
    network: str
    source: str

    def peak(self, precision: str) -> float:
        """Dense FLOP/s of products in this precision."""
        return self.fp8 if precision == "fp8" else self.bf16


@dataclass(frozen=True)
class Link:
    """A link between nodes: bytes a second each way for each GPU."""

    name: str
    rate: float
    source: str


NVIDIA_A100 = "NVIDIA A100 data sheet, 2022; NVLink 3: 600 GB/s both ways"
NVIDIA_H100 = "NVIDIA H100 data sheet, 2023 (half of what it says with sparsity)"

DEVICES = {
    one.name: one
    for one in (
        Device(
            "a100-40gb",
            "A100-SXM4-40GB",
            312 * TERA,
            312 * TERA,
            40 * GB,
            1555e9,
            300e9,
            400,
            108,
            8,
            "ib-hdr",
            NVIDIA_A100,
        ),
        Device(
            "a100", "A100-SXM4-80GB", 312 * TERA, 312 * TERA, 80 * GB, 2039e9, 300e9, 400, 108, 8, "ib-hdr", NVIDIA_A100
        ),
        Device(
            "h100",
            "H100 SXM",
            989.4 * TERA,
            1978.9 * TERA,
            80 * GB,
            3352e9,
            450e9,
            700,
            132,
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
            114,
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
            132,
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
            148,
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
            142,
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
            304,
            8,
            "ib-ndr",
            "AMD Instinct MI300X data sheet, 2023; Infinity Fabric: seven links of 128 GB/s both ways",
        ),
    )
}

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


def device(name: str) -> Device:
    """The GPU of a name: ours, or what a driver or a node's label calls it. Raises ConfigError with the nearest."""
    if found := known(name):
        return found
    near = difflib.get_close_matches(name.lower(), DEVICES, n=1, cutoff=0.3)
    meant = f"did you mean {near[0]}? " if near else ""
    raise ConfigError([Problem("gpu", name, f"{meant}one of {', '.join(DEVICES)}")])


def known(name: str | None) -> Device | None:
    """As `device`; None for what is not in the table."""
    words = set(re.split(r"[^a-z0-9]+", (name or "").lower()))
    if (name or "").lower() in DEVICES:
        return DEVICES[(name or "").lower()]
    if "a100" in words:
        return DEVICES["a100-40gb" if words & {"40gb", "40"} else "a100"]
    if "h100" in words:
        return DEVICES["h100-pcie" if "pcie" in words else "h100"]
    return next((DEVICES[one] for one in ("h200", "b200", "l40s", "mi300x") if one in words), None)


def link(name: str) -> Link:
    """The link of a name, or of a number of GB/s each way for each GPU. Raises ConfigError."""
    if name in LINKS:
        return LINKS[name]
    try:
        rate = float(name)
    except ValueError:
        rate = 0.0
    if 0 < rate < 1e5:
        return Link(f"{rate:g} GB/s", rate * 1e9, "given")
    allowed = f"one of {', '.join(LINKS)}, or GB/s each way for each GPU"
    raise ConfigError([Problem("link", name, allowed)])
