"""The examples are runs: taken by the spec, laid out on a cluster, and written down as every kind of object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.clusters.base import Capacity, Kind
from controlplane.domain.resolve import lay_out
from controlplane.domain.spec import parse_spec
from controlplane.render import render
from controlplane.submission import attempt_of
from tools.blocks import ROOT

EXAMPLES = sorted((ROOT / "deploy/examples").glob("*.json"))
EACH = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
KINDS: tuple[Kind, ...] = ("PyTorchJob", "TrainJob", "Job")
NODE = (96, 1 << 40, 8)  # a node with eight GPUs
CLUSTER = Capacity(16 * 96, 16 << 40, 128, "H100", 16 * 96, 16 << 40, 128, largest=NODE)


@EACH
@pytest.mark.parametrize("kind", KINDS)
def test_example_becomes_an_object(example: Path, kind: Kind) -> None:
    spec = parse_spec(json.loads(example.read_text("utf-8")))
    run = lay_out(spec, CLUSTER, "pvc://teragpt-runs/run", shared_folders=False, kinds=KINDS, kind=kind)
    attempt = attempt_of(
        "run_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "example-1",
        1,
        run,
        spec_hash="0",
        url="http://teragpt",
        image="teragpt/trainer:1",
        audience="teragpt",
    )
    manifest = render(attempt)
    assert manifest["kind"] == kind


@EACH
def test_example_has_a_name_that_no_other_has(example: Path) -> None:
    names = [json.loads(path.read_text("utf-8"))["name"] for path in EXAMPLES]
    assert names.count(json.loads(example.read_text("utf-8"))["name"]) == 1
