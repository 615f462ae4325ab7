from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from teragpt.checkpoint import Checkpoint
from teragpt.config import ConfigError
from teragpt.data import open_dataset
from teragpt.exchange import export as module
from teragpt.exchange.export import export, main
from teragpt.inference.evaluate import evaluate
from teragpt.inference.generate import Sampling
from teragpt.inference.sample import Sampler
from teragpt.inference.trained import load, read
from tests.teragpt import ranks


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_opens_the_export_with_our_logits(trained: Path, tmp_path: Path, tied: bool) -> None:
    run = trained
    if not tied:
        run = tmp_path / "untied"
        code, output = ranks.train({"out": run, "steps": 2, "tied": False, "num_tokens": 2100})
        assert code == 0, output
    folder = export(run, tmp_path / "export")
    model, ours, config = load(run)
    theirs = AutoModelForCausalLM.from_pretrained(folder).train(mode=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "def main():\n    return [x for x in range(10)]\n"
    ids = torch.tensor([ours.encode(text)])
    assert tokenizer(text)["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        difference = (model(ids) - theirs(ids).logits).abs().max()
    assert float(difference) <= 1e-4
    assert theirs.generation_config.eos_token_id == [ours.end]
    assert theirs.config.model_type == "qwen3"
    assert theirs.config.vocab_size == config.num_tokens
    assert theirs.config.tie_word_embeddings is tied


def test_gguf_knows_every_tensor_and_the_vocabulary(trained: Path, tmp_path: Path) -> None:
    """The package that llama.cpp's converter is built on; the converter itself is in none."""
    folder = export(trained, tmp_path / "export")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    with safe_open(folder / "model.safetensors", "pt") as weights:
        given = {one: names.get_name(one, try_suffixes=(".weight",)) for one in weights.keys()}  # noqa: SIM118
    assert None not in given.values()
    assert len(set(given.values())) == len(given) > 11 * config["num_hidden_layers"]
    vocabulary = gguf.SpecialVocab(folder, load_merges=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    assert vocabulary.merges == [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    assert vocabulary.special_token_ids["eos"] == config["eos_token_id"]


def test_transformers_goes_on_from_20_prompts_as_we_do_for_200_tokens(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = ranks.train({"out": run, "steps": 4, "context": 256, "micro_batch": 1})
    assert code == 0, output
    theirs = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "export")).train(mode=False)
    sampler = Sampler(run)
    prompts = open_dataset("").validation(20, 8, 0, 1)[0]
    greedy = {"do_sample": False, "max_new_tokens": 200, "temperature": None, "top_k": None, "top_p": None}
    found = theirs.generate(prompts, attention_mask=torch.ones_like(prompts), **greedy)[:, prompts.size(1) :].tolist()
    made = sampler.complete(prompts.tolist(), Sampling(tokens=200, temperature=0))
    for ours, other in zip(made, found, strict=True):
        drawn = [one.token for one in ours.drawn]
        assert drawn == other[: len(drawn)]
        assert len(drawn) == 200 or ours.finish == "stop"


def test_the_card_tells_plan_data_curve_and_evaluation(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = (export(run, tmp_path / "before") / "README.md").read_text("utf-8")
    assert before.startswith("---\nlibrary_name: transformers\n")
    assert "| `dim` | 32 |" in before
    assert "Python's standard library" in before
    assert "| 4 |" in before.partition("## Curve")[2]
    assert "Not evaluated" in before
    bits = evaluate(run, sequences=4)["sources"]["embedded"]["bits_per_byte"]
    after = (export(run, tmp_path / "after") / "README.md").read_text("utf-8")
    assert f"| {bits:.4f} |" in after.partition("## Evaluation")[2]


def test_weights_are_cut_into_files_and_none_needs_the_whole_model(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(export(trained, tmp_path / "whole") / "model.safetensors")
    largest: list[int] = []

    def measured(checkpoint: Checkpoint, into: dict[str, torch.Tensor]) -> None:
        largest.append(sum(map(module.size, into.values())))
        read(checkpoint, into)

    monkeypatch.setattr(module, "read", measured)
    monkeypatch.setattr(module, "SHARD_BYTES", 50_000)
    monkeypatch.setattr(module, "READ_BYTES", 10_000)
    folder = export(trained, tmp_path / "cut")
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    assert index["metadata"]["total_size"] == sum(map(module.size, whole.values()))
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 2
    found = {name: weight for file in files for name, weight in load_file(folder / file).items()}
    assert found.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    model, _, _ = load(trained)
    assert max(largest) <= max(10_000, *(map(module.size, model.state_dict().values())))
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(theirs.model.norm.weight, whole["model.norm.weight"])


def test_every_file_is_readable_as_the_umask_says(trained: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = export(trained, tmp_path / "export")
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == dict.fromkeys(
        [
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ],
        "0o640",
    )


def test_nothing_that_exists_is_written_over(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="out: got"):
        export(trained, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert (export(trained, tmp_path / "empty") / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_a_folder_that_cannot_be_written_is_an_error_of_out_and_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"out: got .*file/x'; allowed: a folder that can be written, .*Not a dir"):
        export(trained, tmp_path / "file" / "x")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))  # as a disk that is full
    try:
        with pytest.raises(ConfigError, match=r"out: got .*with room for the model \(File too large\)"):
            export(trained, tmp_path / "export")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_says_what_is_wrong(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained), str(tmp_path / "out")]) == 0
    assert main([str(tmp_path), str(tmp_path / "other")]) == 2
    assert main([str(trained)]) == 2
    said = capsys.readouterr()
    assert str(tmp_path / "out") in said.out
    assert "a run folder with a published checkpoint" in said.err
    assert "usage" in said.err
