from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from .conftest import Teragpt


def folder_of(teragpt: Teragpt, run: str) -> Path:
    return Path(json.loads(teragpt("show", run, "--json"))["folder"])


def test_samples_stream_from_a_run_or_its_folder_and_a_seed_repeats_them(teragpt: Teragpt, finished: str) -> None:
    options = ["def main(", "--tokens", "8", "--seed", "7"]
    written = teragpt("sample", finished, *options)
    assert written.startswith("def main(")
    assert teragpt("sample", str(folder_of(teragpt, finished)), *options) == written


def test_export_writes_a_folder_and_refuses_one_that_is_there(teragpt: Teragpt, finished: str, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert teragpt("export", finished, str(out)) == f"{out}\n"
    assert json.loads((out / "config.json").read_text("utf-8"))["architectures"] == ["Qwen3ForCausalLM"]
    assert teragpt("export", finished, str(out), code=2).startswith("error: out: got ")


def test_a_number_out_of_range_is_bad_input(teragpt: Teragpt, finished: str) -> None:
    assert teragpt("sample", finished, "x", "--top-p", "0", code=2).startswith("error: top_p: got 0")


def test_a_run_whose_folder_is_elsewhere_says_so(teragpt: Teragpt, finished: str) -> None:
    folder = folder_of(teragpt, finished)
    away = folder.with_name("away")
    shutil.move(folder, away)
    try:
        error = teragpt("sample", finished, code=4)
    finally:
        shutil.move(away, folder)
    assert f"{folder}, is not on this machine" in error


def test_prepare_makes_a_dataset(teragpt: Teragpt, finished: str, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"the cat number {number} sat on the mat\n" * 50, "utf-8")
    tokenizer = str(folder_of(teragpt, finished) / "tokenizer")
    out = tmp_path / "dataset"
    assert "train: " in teragpt("prepare", str(text), "--out", str(out), "--tokenizer", tokenizer)
    assert (out / "dataset.json").is_file()
    error = teragpt("prepare", str(tmp_path / "none"), "--out", str(tmp_path / "d"), "--tokenizer", tokenizer, code=2)
    assert error.startswith("error: ")


def test_without_the_train_extra_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    script = f"""
import sys
sys.modules["torch"] = None
from controlplane.cli import main
sys.exit(main(["sample", {str(tmp_path)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 6
    assert done.stderr.startswith("error: teragpt sample needs the [train] extra, of which torch is not installed")
