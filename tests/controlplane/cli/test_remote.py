"""What is done with a model in a pod of its own; here the pod is a process of the local cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.cli import remote
from controlplane.cli.errors import CliError
from controlplane.client import Client

from .conftest import Plane, Teragpt


def test_a_sample_is_printed_as_the_pod_writes_it(
    plane: Plane, finished: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(plane.url) as client:
        remote.sample(client, finished, prompt="def main(", tokens=4, temperature=0.6, top_k=50, top_p=0.95, seed=None)
    printed = capsys.readouterr()
    assert printed.out.startswith("def main(")
    assert "sample-" in printed.err


def test_an_export_comes_back_as_a_folder(plane: Plane, finished: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    with Client(plane.url) as client:
        remote.fetch(client, finished, "export", out)
        assert json.loads((out / "config.json").read_text("utf-8"))["architectures"] == ["Qwen3ForCausalLM"]
        assert list(tmp_path.iterdir()) == [out]
        with pytest.raises(CliError, match="exists: give a folder that does not"):
            remote.fetch(client, finished, "export", out)
        with pytest.raises(CliError, match="cannot be written: Not a directory"):
            remote.fetch(client, finished, "export", out / "config.json" / "x")


def test_a_run_without_a_model_says_so_before_anything_is_made(teragpt: Teragpt, tmp_path: Path) -> None:
    teragpt("run", "tiny", "--name", "modelless", "--processes", "1", "--set", "steps=5000")
    try:
        error = teragpt("pull", "modelless", str(tmp_path / "copy"), code=1)
    finally:
        teragpt("cancel", "modelless")
    assert "there is no checkpoint in its folder" in error
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_the_cluster_has(teragpt: Teragpt) -> None:
    told = teragpt("doctor")
    assert "PyTorchJob (the one kind that the local cluster executes)" in told
    assert "machine" in told
    assert json.loads(teragpt("doctor", "--json"))[0]["ready"]
