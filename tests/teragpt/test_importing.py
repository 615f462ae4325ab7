from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from teragpt.config import ConfigError
from teragpt.exchange.export import export, exported, rows
from teragpt.exchange.importing import config_of, import_model
from teragpt.parallel import build_model, load_attribute
from teragpt.tokenization.tokenizer import Tokenizer
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
        ({"architectures": ["MistralForCausalLM"]}, "architectures: got .*Mistral.* may see a window"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "architectures: got .*several experts"),
        (
            {"architectures": "Qwen3ForCausalLM"},
            "architectures: got 'Qwen3ForCausalLM'; allowed: .*the models here have RMSNorm",
        ),
        ({"head_dim": 128}, r"q_proj.weight: got \[32, 32\]; allowed: a weight of \[256, 32\]"),
        ({"head_dim": 15}, "head_dim: got 15; allowed: an even number"),
        ({"num_key_value_heads": 3}, "kv_heads: got 3; allowed: a divisor of heads 2"),
        ({"attention_bias": True}, "attention_bias: got true; allowed: false"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "rope_scaling: got .*allowed: factor of 1 or more"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: got .*allowed: with yarn factor, original_max"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "rope_scaling: got .*allowed: numbers, as which factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling: got .*its angles change with the length"),
        (
            {
                "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
                "rope_scaling": {"type": "linear", "factor": 3.0},
            },
            "rope_scaling: got .*allowed: the same as rope_parameters",
        ),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rope_parameters: got .*whole head"),
        ({"rope_parameters": [1]}, "rope_parameters: got .*whole head"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "rope_scaling: got "),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: got 0.5; allowed: 1"),
        ({"rope_theta": 1e6}, "rope_theta: got .1000000.0, 10000.0.; allowed: one number"),
        ({"rope_theta": None}, "rope_theta: got .None, 10000.0.; allowed: one number"),
        ({"layer_types": ["sliding_attention"]}, "layer_types: got .*'full_attention' in every layer"),
        ({"use_sliding_window": True}, "use_sliding_window: got true; allowed: none: attention here is full"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: got .*floating-point numbers"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu'; allowed: 'silu'"),
        ({"vocab_size": 300}, "vocab_size: got 300; allowed: at least the tokenizer's"),
        (
            {"num_hidden_layers": 3},
            r"weights: got '11 fewer'; allowed: every weight of the model \(model.layers.2.* and 8 more",
        ),
        ({"num_hidden_layers": 1}, r"weights: got '11 more'; allowed: no others than the model's \(model.layers.1"),
        (
            {"tie_word_embeddings": False},
            r"weights: got '1 fewer'; allowed: every weight of the model \(lm_head.weight\)",
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


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 4096, "use_sliding_window": False},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1e4}},
        {"layer_types": ["full_attention"] * 2},
    ],
)
def test_what_is_off_or_as_ever_is_no_difference(copy: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, **change}), "utf-8")
    assert (import_model(copy, tmp_path / "run") / "model.json").exists()


def test_a_folder_without_a_model_or_a_vocabulary_is_refused_by_name(copy: Path, tmp_path: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"tokenizer: got .*copy'; .*there is no vocabulary"):
        import_model(copy, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"model: got .*none'; allowed: a folder that transformers saved"):
        import_model(tmp_path / "none", tmp_path / "run")


def test_pickled_weights_are_refused_with_what_to_do(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"those in .bin are pickles, which run code as they are read: have"):
        import_model(copy, tmp_path / "run")
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match=r"allowed: a file of safetensors \(there is none\)"):
        import_model(copy, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(copy: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(dtype)
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ConfigError, match=f"model.norm.weight: got '{dtype}'; allowed: one of torch.float32"):
        import_model(copy, tmp_path / "run")


def test_a_tied_head_may_be_there_twice_but_not_differ(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, copy / "model.safetensors")
    import_model(copy, tmp_path / "run")
    weights["lm_head.weight"][0] += 1
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lm_head.weight: got 'others'; allowed: the values of model.embed_tokens"):
        import_model(copy, tmp_path / "other")


def test_files_of_weights_are_found_by_their_index_in_the_same_folder(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    names = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(sorted(weights))}
    for file in set(names.values()):
        save_file({name: weights[name] for name in weights if names[name] == file}, copy / file)
    (copy / "model.safetensors").rename(tmp_path / "beside.safetensors")

    def imported(mapped: object) -> Path:
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}), "utf-8")
        return import_model(copy, tmp_path / "run")

    bad: list[object] = [None, [], {}, {"model.norm.weight": 3}, {"model.norm.weight": "../beside.safetensors"}]
    for mapped in bad:
        with pytest.raises(
            ConfigError, match=r"weights: got '.*(index.json'; allowed: a `weight_map`|/3'; allowed: a)"
        ):
            imported(mapped)
    again = load_file(export(imported(names), tmp_path / "again") / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    shutil.rmtree(tmp_path / "run")
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"weights: got '.*model-00002-of-00002.safetensors'; allowed: a readable"):
        imported(names)


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


def test_memory_does_not_grow_with_the_model(model: Path, tmp_path: Path) -> None:
    parameters = {depth: wide(tmp_path / str(depth), model, depth) for depth in (1, 8)}
    more = 4 * (parameters[8] - parameters[1])  # bytes of one copy in fp32
    assert more > 80 << 20
    peaks = json.loads(subprocess.check_output([sys.executable, "-c", PEAKS, str(tmp_path / "1"), str(tmp_path / "8")]))
    assert peaks[1] - peaks[0] < more / 4, "the largest weight is held, and not the model"


PEAKS = """
import json, resource, sys
from teragpt.exchange.importing import import_model
peaks = []
for folder in sys.argv[1:]:
    import_model(folder, folder + "-run")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
print(json.dumps(peaks))
"""  # what a process held at the most never falls, so that one process tells of both


def wide(folder: Path, like: Path, depth: int) -> int:
    """A model of so many wide layers in `folder`, in bf16, with the tokenizer of another; how many parameters."""
    shutil.copytree(like, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    said = json.loads((like / "config.json").read_text("utf-8"))
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8}
    said |= {**shape, "num_hidden_layers": depth, "head_dim": 64}
    (folder / "config.json").write_text(json.dumps(said), "utf-8")
    config = config_of(folder, Tokenizer(str(folder)))
    shapes = build_model(load_attribute(config.model, "model"), config).state_dict()
    weights = {
        exported(name): torch.zeros(whole[: rows(name, config)].shape, dtype=torch.bfloat16)
        for name, whole in shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
    return sum(weight.numel() for weight in weights.values())


def test_nothing_is_written_over(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out: got"):
        import_model(model, tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"out: got .*file/run'; allowed: a folder that can be written"):
        import_model(model, tmp_path / "file" / "run")
