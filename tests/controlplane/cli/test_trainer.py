from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from controlplane.cli import main

from .conftest import Plane, Teragpt


def folder_of(teragpt: Teragpt, run: str) -> Path:
    return Path(json.loads(teragpt("show", run, "--json"))["folder"])


def test_samples_stream_from_a_run_or_its_folder_and_a_seed_repeats_them(teragpt: Teragpt, finished: str) -> None:
    options = ["def main(", "--tokens", "8", "--seed", "7"]
    written = teragpt("sample", finished, *options)
    assert written.startswith("def main(")
    assert teragpt("sample", str(folder_of(teragpt, finished)), *options) == written


def test_several_prompts_and_log_probabilities_come_as_lines_of_json(teragpt: Teragpt, finished: str) -> None:
    options = ["--tokens", "4", "--seed", "7", "--json", "--logprobs", "2"]
    first, second = map(json.loads, teragpt("sample", finished, "def ", "import ", *options).splitlines())
    assert (first["prompt"], second["prompt"]) == ("def ", "import ")
    assert "".join(one["token"] for one in first["tokens"]) == first["text"]
    assert len(first["tokens"][0]["likeliest"]) == 2


def test_export_writes_a_folder_and_refuses_one_that_is_there(teragpt: Teragpt, finished: str, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert teragpt("export", finished, str(out)) == f"{out}\n"
    assert json.loads((out / "config.json").read_text("utf-8"))["architectures"] == ["Qwen3ForCausalLM"]
    assert teragpt("export", finished, str(out), code=2).startswith("error: out: got ")


def test_a_number_out_of_range_is_bad_input(teragpt: Teragpt, finished: str) -> None:
    assert teragpt("sample", finished, "x", "--top-p", "0", code=2).startswith("error: top_p: got 0")


def test_what_is_wrong_is_said_before_anything_is_written(teragpt: Teragpt, finished: str) -> None:
    teragpt.capsys.readouterr()
    assert main(["sample", finished, "def main(", "--top-p", "0"]) == 2
    assert teragpt.capsys.readouterr().out == ""


def test_a_run_without_a_checkpoint_says_so_and_what_it_does(teragpt: Teragpt) -> None:
    made = teragpt("run", "tiny", "--name", "idle", "--processes", "1", "--set", "steps=5000")
    run = made.split()[2].rstrip(",")
    try:
        for command in (["sample", "idle"], ["export", "idle", "nowhere"]):
            error = teragpt(*command, code=1)
            assert error.startswith(f"error: run {run} has no checkpoint yet: it is ")
            assert error.endswith("; try: teragpt show idle\n")
            assert error.count("\n") == 1
    finally:
        teragpt("cancel", "idle")


def test_a_folder_without_a_checkpoint_says_so(teragpt: Teragpt, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    assert teragpt("sample", str(tmp_path), code=1).startswith(f"error: {tmp_path} holds no checkpoint yet")


def test_a_folder_of_something_else_says_so(teragpt: Teragpt, tmp_path: Path) -> None:
    for command in (["sample", str(tmp_path)], ["export", str(tmp_path), str(tmp_path / "out")]):
        told = f"error: {tmp_path} is no run folder: it holds no config.json; try: teragpt runs\n"
        assert teragpt(*command, code=2) == told
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_folder_is_elsewhere_says_so(teragpt: Teragpt, finished: str) -> None:
    folder = folder_of(teragpt, finished)
    away = folder.with_name("away")
    shutil.move(folder, away)
    try:
        error = teragpt("sample", finished, code=1)
    finally:
        shutil.move(away, folder)
    assert f"there is no checkpoint in its folder {folder}" in error


def test_prepare_makes_a_dataset(teragpt: Teragpt, finished: str, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"the cat number {number} sat on the mat\n" * 50, "utf-8")
    tokenizer = str(folder_of(teragpt, finished) / "tokenizer")
    out = tmp_path / "dataset"
    printed = teragpt("prepare", str(text), "--out", str(out), "--tokenizer", tokenizer).splitlines()
    assert printed[0].startswith("train: ")
    assert printed[0].endswith(", 1 shard")
    assert printed[-1] == f"next: teragpt run SIZE --data {out}"
    assert (out / "dataset.json").is_file()
    error = teragpt("prepare", str(tmp_path / "none"), "--out", str(tmp_path / "d"), "--tokenizer", tokenizer, code=2)
    assert error.startswith("error: ")


def test_prepare_on_the_local_cluster_is_a_process_of_it_whose_dataset_a_run_uses(
    teragpt: Teragpt, finished: str, plane: Plane, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 5000, "utf-8")
    tokenizer = str(folder_of(teragpt, finished) / "tokenizer")
    given = ["--tokenizer", tokenizer, "--workers", "1", "--on-cluster"]
    printed = teragpt("prepare", str(tmp_path / "*.txt"), *given, "--out", "cats", "--name", "cats").splitlines()
    out = plane.home / "datasets" / "cats"
    assert (printed[0], printed[1][:7]) == ("prepare: begun", "train: ")
    assert printed[-1] == f"next: teragpt run SIZE --data {out}"
    assert (out / "dataset.json").is_file()
    refused = teragpt("prepare", str(tmp_path), *given, "--out", "cats", code=2)
    assert "/out" in refused
    assert "something is there" in refused
    failed = teragpt("prepare", str(tmp_path / "*.none"), *given, "--out", "dogs", code=5)
    assert "a folder or glob pattern with files in it (it has none)" in failed
    assert "teragpt retry run_" in failed
    assert not (plane.home / "datasets" / "dogs").exists()
    assert "cats" in teragpt("runs", "--query", "cats")
    assert "datasets/cats" in teragpt("show", "cats")
    made = ["run", "tiny", "--data", str(out), "--processes", "1", "--set", "steps=2", "--set", "eval_sequences=2"]
    assert json.loads(teragpt(*made, "--follow", "--json"))["phase"] == "succeeded"


def test_without_the_train_extra_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    checkpoint = tmp_path / "checkpoints/step-00000002-attempt-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "meta.json").write_text("{}", "utf-8")
    script = f"""
import sys
sys.modules["torch"] = None
from controlplane.cli import main
sys.exit(main(["sample", {str(tmp_path)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 6
    assert done.stderr.startswith("error: teragpt sample needs the [train] extra, of which torch is not installed")
