from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from teragpt.config import ConfigError
from teragpt.export import export
from teragpt.importing import import_model
from tests.teragpt import ranks


@pytest.fixture(scope="module")
def model(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(trained, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_an_imported_model_is_exported_bit_by_bit_and_trained_on(model: Path, tmp_path: Path) -> None:
    run = import_model(model, tmp_path / "run")
    again = export(run, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    shape = json.loads((run / "model.json").read_text("utf-8"))
    code, output = ranks.train({**shape, "out": tmp_path / "on", "start_from": run, "steps": 2})
    assert code == 0, output
    assert "resumed from step 0" in output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architectures: got .*Llama.* divides each query and key"),
        ({"head_dim": 128}, "head_dim: got 128; allowed: 16, which is hidden_size / num_attention_heads"),
        ({"attention_bias": True}, "attention_bias: got True; allowed: False"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: got "),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu'; allowed: 'silu'"),
        ({"vocab_size": 300}, "vocab_size: got 300; allowed: at least the tokenizer's"),
        (
            {"num_hidden_layers": 3},
            "weights: got 'none'; allowed: 'model.layers.2|weights: got 'none'; allowed: model.lay",
        ),
    ],
)
def test_a_model_that_this_one_cannot_be_is_refused_with_what_differs(
    copy: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, **change}), "utf-8")
    with pytest.raises(ConfigError, match=said):
        import_model(copy, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_weights_that_are_missing_torn_or_not_finite_are_refused(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model.norm.weight: got 'NaN or infinity'"):
        import_model(copy, tmp_path / "run")
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"weights: got '.*model.safetensors'; allowed: a readable"):
        import_model(copy, tmp_path / "run")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"weights: got '.*model.safetensors'"):
        import_model(copy, tmp_path / "run")


def test_nothing_is_written_over(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out: got"):
        import_model(model, tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"out: got .*file/run'; allowed: a folder that can be written"):
        import_model(model, tmp_path / "file" / "run")
