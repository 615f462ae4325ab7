from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.cli import main
from controlplane.cli.errors import CliError
from controlplane.cli.plans import predicted, recalibrate
from teragpt.plan import cluster_of, plan


def test_gpus_that_nobody_has_are_planned_for_without_a_control_plane(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "8b", "--gpus", "64", "--price", "2", "--explain", "--all"]) == 0
    printed = capsys.readouterr().out
    assert "GPUs                        64 x H100 SXM, 8 a node, ib-ndr" in printed
    assert "in money" in printed
    assert ", bf16\n" in printed
    assert "  in fp8" in printed
    assert "products: 6 FLOPs a weight and token" in printed
    assert "rope_theta" in printed


def test_a_plan_is_json_and_a_range_is_a_row_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "8b", "--gpu", "h200", "--gpus", "16", "--nodes", "4", "--set", "tp=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gpus_per_node"], found["layout"]["tp"], found["settings"]["tp"]) == (4, 2, 2)
    drawn = tmp_path / "curve.html"
    assert main(["plan", "1.3b", "--gpus", "1..8", "--picture", str(drawn)]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:5]] == ["1", "2", "4", "8"]
    assert "perfect scaling" in drawn.read_text("utf-8")
    assert main(["plan", "1.3b", "--gpus", "1..2", "--json"]) == 0
    assert [one["gpus"] for one in json.loads(capsys.readouterr().out)] == [1, 2]


def test_a_budget_of_gpu_hours_names_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu-hours", "100"]) == 0
    assert "20 a parameter" in capsys.readouterr().out
    assert main(["plan", "--gpu-hours", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["forecast"]["gpu_hours"] <= 100
    assert found["size"] == found["plan"]["size"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["8b", "--gpus", "none"], "--gpus: got 'none'; allowed: a number, or two as 8..4096"),
        (["8b", "--gpus", "8..4"], "--gpus: got '8..4'"),
        (["8b", "--gpus", "0"], "--gpus: got '0'"),
        (["175b", "--gpus", "8"], "gpus: got 8; allowed: enough to hold 175b"),
        (["175b", "--gpus", "1..8"], "gpus: got 8; allowed: enough to hold 175b"),
        (["8b", "--gpu", "h101"], "gpu: got 'h101'; allowed: did you mean h100?"),
        (["8b", "--gpus", "8", "--processes", "2"], "--processes: allowed: without --gpus, --gpu and --gpu-hours"),
        (["8b", "--price", "2", "--picture", "x"], "--price, --picture: allowed: with --gpus or --gpu"),
        (["--gpus", "8"], "SIZE: got nothing; allowed: a named size"),
        (["--gpus", "8", "--set", "size=8b"], "SIZE: got nothing; allowed: a named size"),
        (["8b", "--gpu-hours", "10"], "--gpu-hours: got 10 and size '8b'; allowed: one of the two"),
        (["8b", "--gpus", "8", "--gpu-memory", "-1"], "gpu_memory: got -1.0; allowed: GB of one GPU"),
        (["8b", "--gpus", "8", "--picture", "/no/such/place.html"], "--picture: got '/no/such/place.html'; allowed: a"),
        (["8b", "--gpus", "8..64", "--nodes", "2"], "--nodes: got 2; allowed: with one number of --gpus"),
        (["--gpu-hours", "10", "--explain"], "--explain: allowed: with a size, without --gpu-hours"),
        (["--gpu-hours", "10", "--price", "inf"], "price: got inf; allowed: money for an hour of one GPU"),
        (["--gpu-hours", "10", "--gpus", "8..64"], "--gpus: got '8..64'; allowed: one number, with --gpu-hours"),
        (["8b", "--gpu", ""], "gpu: got ''; allowed: one of a100-40gb"),
        (["8b", "--gpus", ""], "--gpus: got ''; allowed: a number"),
        (["8b", "--gpus", "8", "--set", "size=13b"], "--set size: got '13b' and size '8b'; allowed: SIZE alone"),
        (["--gpu-hours", "-1"], "gpu_hours: got -1.0; allowed: hours of one GPU, more than 0"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 2
    assert told in capsys.readouterr().err


def test_what_a_calibration_would_overwrite_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there.json"
    there.touch()
    assert main(["bench", "--calibrate", str(there)]) == 2
    assert "allowed: a file that is not there yet" in capsys.readouterr().err


def test_cores_are_planned_for_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny", "--gpu", "cpu", "--gpus", "2", "--explain"]) == 0
    printed = capsys.readouterr().out
    assert "2 x CPU core" in printed
    assert "1 of 4, recompute none, fp32" in printed
    assert "core-hours" in printed
    assert "measured on a core of" in printed
    assert main(["plan", "tiny", "--gpu", "cpu", "--gpus", "1000"]) == 2
    assert "gpus: got 1000; allowed: a number that 8 sequences can be cut over" in capsys.readouterr().err


def test_what_runs_took_makes_a_calibration_of_one_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [{"gpu": gpu, "measured_over_planned": {"step_seconds": 1.5}} for gpu in ("cpu-core", "h100", "cpu-core")]
    with pytest.raises(CliError, match="--gpu: got nothing; allowed: one of cpu-core, h100"):
        recalibrate(tmp_path / "mine.json", runs, None)
    assert "2 runs, whose steps took 1.5 of what was planned" in recalibrate(tmp_path / "mine.json", runs, "cpu")
    assert main(["plan", "tiny", "--gpu", "cpu", "--gpus", "2", "--calibration", str(tmp_path / "mine.json")]) == 0
    assert "measured on 2 runs" in capsys.readouterr().out
    assert main(["measured", "--gpu", "h100"]) == 2
    assert "allowed: --gpu with --calibrate" in capsys.readouterr().err


def test_a_runs_prediction_is_told_in_a_few_words() -> None:
    told = predicted(plan({"size": "8b"}, cluster_of("h100", 16)).to_json())
    assert told["mesh"].startswith("dp_replicate 2, dp_shard 8") or "dp_shard 16" in told["mesh"]
    assert told["memory"].endswith("backward")
    assert "GPU-hours" in told["takes"]
    assert "core-hours" in predicted(plan({"size": "tiny"}, cluster_of("cpu", 2)).to_json())["takes"]
    assert predicted({"refused": "too few"}) == {"prediction": "too few"}
    assert predicted({}) == {}
