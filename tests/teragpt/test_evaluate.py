from __future__ import annotations

import dataclasses
import importlib
import math
import shutil
from pathlib import Path

import pytest
import torch

from teragpt.config import ConfigError
from teragpt.data import open_dataset
from teragpt.inference import evaluate as module
from teragpt.inference.evaluate import evaluate, kept, table
from teragpt.inference.trained import describe, load
from teragpt.prepare import prepare
from teragpt.prepare.corpus import embedded_dataset
from teragpt.storage import folder_at
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def cats(trained: Path, tmp_path: Path) -> Path:
    """A dataset of the run's tokenizer."""
    (tmp_path / "cats.txt").write_text("the cat sat on the mat. Straße 漢字\n" * 200, "utf-8")
    prepare([tmp_path / "cats.txt"], tmp_path / "cats", Tokenizer(str(trained / "tokenizer")), progress=False)
    return tmp_path / "cats"


def test_the_loss_is_the_models_over_the_held_out_windows_and_bits_are_of_their_bytes(run: Path) -> None:
    found = evaluate(run, sequences=6)["sources"]["embedded"]
    model, tokenizer, config = load(run)
    ids, targets = open_dataset("").validation(6, config.context, 0, 1)
    with torch.no_grad():
        loss = float(model(ids, targets=targets))
    text = "".join(tokenizer.decode(token for token in row if token != tokenizer.end) for row in targets.tolist())
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["tokens"] == targets.numel()
    assert found["bytes"] == len(text.encode())
    assert found["bits_per_byte"] == pytest.approx(loss * targets.numel() / math.log(2) / len(text.encode()), rel=1e-5)


def test_each_source_of_a_mixture_is_told_apart_and_kept_with_the_run(run: Path, cats: Path) -> None:
    embedded = embedded_dataset()
    found = evaluate(run, f"{cats}:0.5,{embedded}:0.5", sequences=4)
    assert set(found["sources"]) == {"cats", Path(embedded).name}
    assert kept(folder_at(run, "run")) == [found]
    assert found["sources"]["cats"] == evaluate(run, str(cats), sequences=4)["sources"]["cats"]


def test_what_was_measured_is_not_measured_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(run, sequences=2)
    monkeypatch.setattr(module, "measure", None)
    assert evaluate(run, sequences=2) == first


def test_data_of_another_tokenizer_and_no_window_at_all_are_refused(run: Path, cats: Path, tmp_path: Path) -> None:
    prepare([tmp_path / "cats.txt"], tmp_path / "other", train_bpe(["cat"], 258), progress=False)
    with pytest.raises(ConfigError, match=r"data: got .*; allowed: a dataset of the tokenizer"):
        evaluate(run, str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="sequences: got 0"):
        evaluate(run, str(cats), sequences=0)
    assert not (run / "evaluations").exists()


def test_a_loader_of_ones_own_is_called_with_the_settings_that_it_trained_with(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from teragpt.data import open_dataset\nasked = []\ndef opened(path, *, tokenizer='mine'):\n"
    (tmp_path / "loader_of_mine.py").write_text(f"{source}    asked.append(tokenizer)\n    return open_dataset(path)\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint, tokenizer, config = describe(run)
    for loader, wanted in (("loader_of_mine:opened", "theirs"), (config.loader, "not there")):
        given = dataclasses.replace(config, loader=loader, tokenizer=wanted)
        monkeypatch.setattr(module, "describe", lambda _, given=given: (checkpoint, tokenizer, given))
        assert evaluate(run, sequences=1)["sequences"] == 1
    assert importlib.import_module("loader_of_mine").asked == ["theirs"]


def test_runs_are_compared_source_by_source_the_best_first() -> None:
    def measured(bits: float) -> dict[str, object]:
        return {"step": 4, "sources": {"web": {"bits_per_byte": bits, "loss": bits, "tokens": 10}}}

    head, first, second = table([("worse", measured(2.0)), ("better", measured(1.0))])
    assert head.split() == ["source", "run", "step", "bits/byte", "loss", "tokens"]
    assert first.split() == ["web", "better", "4", "1.0000", "1.0000", "10"]
    assert second.split()[1] == "worse"
