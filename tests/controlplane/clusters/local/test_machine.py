from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import psutil
import pytest

from controlplane.clusters.local import ports
from controlplane.clusters.local.machine import cgroup_limits, this_machine, visible_gpus
from controlplane.clusters.local.share import Share, lacks, quantity

LISTED = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaa)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbb)\n"


def nvidia_smi(folder: Path, script: str) -> dict[str, str]:
    """An environment whose PATH has a program of that name."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_this_machine_offers_no_more_than_it_has() -> None:
    machine = this_machine({"PATH": "/nowhere"})
    assert 1 <= machine.cpus <= len(os.sched_getaffinity(0))
    assert 0 < machine.memory <= psutil.virtual_memory().total
    assert (machine.gpus, machine.gpu_type) == ((), None)


@pytest.mark.parametrize(
    ("visible", "names"), [(None, ["0", "1"]), ("1", ["1"]), ("GPU-aaa", ["0"]), ("", []), ("0, 1", ["0", "1"])]
)
def test_gpus_are_those_listed_and_not_hidden(tmp_path: Path, visible: str | None, names: list[str]) -> None:
    environ = nvidia_smi(tmp_path, f"printf '{LISTED}  MIG 1g.10gb Device 0: (UUID: MIG-x)\\n'")
    if visible is not None:
        environ["CUDA_VISIBLE_DEVICES"] = visible
    assert list(visible_gpus(environ)) == names
    machine = this_machine(environ)
    assert machine.gpu_type == ("NVIDIA H100 80GB HBM3" if names else None)


def test_a_driver_that_does_not_answer_offers_no_gpu(tmp_path: Path) -> None:
    assert visible_gpus(nvidia_smi(tmp_path, "echo broken >&2; exit 9")) == {}


def test_limits_of_every_cgroup_above_count(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("1:cpu:/old\n0::/slice/unit\n")
    for path, limit in (("", "max 100000"), ("slice", "150000 100000"), ("slice/unit", "max 100000")):
        (tmp_path / "fs" / path).mkdir(exist_ok=True, parents=True)
        (tmp_path / "fs" / path / "cpu.max").write_text(limit)
    limits = list(cgroup_limits("cpu.max", tmp_path / "fs", own))
    assert limits == [["max", "100000"], ["150000", "100000"], ["max", "100000"]]


@pytest.mark.parametrize("text", [None, "1:cpu:/old\n"])
def test_a_machine_without_cgroups_has_no_limit(tmp_path: Path, text: str | None) -> None:
    if text:
        (tmp_path / "cgroup").write_text(text)
    assert list(cgroup_limits("cpu.max", tmp_path, tmp_path / "cgroup")) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", "2"),
        ("500m", "0.5"),
        ("1.5", "1.5"),
        ("4Gi", 4 << 30),
        ("1k", 1000),
        ("2M", 2_000_000),
        ("512Ki", 512 << 10),
    ],
)
def test_quantities_are_kubernetes_own(text: str, value: str | int) -> None:
    assert quantity(text) == Decimal(value)


def test_a_lack_is_told_in_words_that_people_use() -> None:
    needed = Share(Decimal("1.5"), Decimal(3 << 30), Decimal(2))
    free = Share(Decimal(1), Decimal(1 << 29), Decimal(-1))
    assert lacks(needed, free) == [
        ("cpu", "1.5 cpus", "1 cpus"),
        ("memory", "3 GiB of memory", "0.5 GiB of memory"),
        ("nvidia.com/gpu", "2 gpus", "0 gpus"),
    ]
    assert lacks(needed, needed) == []


def test_a_port_that_someone_holds_is_not_reserved() -> None:
    with ports.reserve() as held:
        port = held.getsockname()[1]
        with pytest.raises(OSError, match=f"no free port for the rendezvous at {port}"):
            ports.reserve(port)
    ports.reserve(port).close()


def test_ports_come_from_below_those_of_outgoing_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ports.reserve() as held:
        assert ports.LOWEST <= held.getsockname()[1] < ports.ABOVE
    (tmp_path / "range").write_text("1024 65535")
    monkeypatch.setattr(ports, "EPHEMERAL", tmp_path / "range")
    with ports.reserve() as held:
        assert held.getsockname()[1] > 0


def test_a_machine_without_ipv6_reserves_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.has_dualstack_ipv6", lambda: False)
    with ports.reserve() as held:
        assert held.getsockname()[1] > 0
