"""Llama's attention: what is imported, trained on, sampled and exported is transformers' own, on any mesh."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from teragpt.config import ConfigError, resolve
from teragpt.exchange.export import LLAMA, export, openable
from teragpt.exchange.importing import import_model
from teragpt.inference.generate import Sampling
from teragpt.inference.sample import Sampler
from teragpt.llama import Llama
from tests.teragpt import ranks
from tests.teragpt.foreign import same_weights, with_tokenizer
from tests.teragpt.parity import Cell, compute, difference

PROMPT = "def main("
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.fixture(scope="module")
def theirs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LlamaForCausalLM as transformers saves it, with a tokenizer of ours."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama") / "theirs"
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    return with_tokenizer(folder, trained)


@pytest.fixture(scope="module")
def run(theirs: Path) -> Path:
    return import_model(theirs, theirs.parent / "run")


def test_what_is_imported_says_the_same_and_leaves_as_it_came(theirs: Path, run: Path) -> None:
    from transformers import AutoModelForCausalLM

    again = export(run, theirs.parent / "again")
    same_weights(theirs, again)
    reference: Any = AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32)
    assert (reference.config.model_type, reference.config.rms_norm_eps) == ("llama", 1e-5)
    assert "in the shape of Llama" in (again / "README.md").read_text("utf-8")
    sampler = Sampler(str(run))
    assert isinstance(sampler.model, Llama)
    ids = torch.tensor([sampler.tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        assert (sampler.model(ids) - reference(ids).logits).abs().max() <= 1e-4
        (made,) = sampler.complete([PROMPT], Sampling(tokens=20, temperature=0, logprobs=0))
        expected = reference.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None)[0, ids.size(1) :]
    drawn = [one.token for one in made.drawn]
    assert drawn == expected.tolist()[: len(drawn)]


@pytest.mark.parametrize(
    "rope", [LLAMA3, {"rope_type": "linear", "factor": 2.5}, YARN, {**YARN, "attention_factor": 0.8, "beta_fast": 8.0}]
)
@pytest.mark.parametrize("qwen", [False, True])
def test_scaled_rotary_positions_are_transformers_own(
    theirs: Path, tmp_path: Path, rope: dict[str, Any], qwen: bool
) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, Qwen3ForCausalLM

    folder = Path(shutil.copytree(theirs, tmp_path / "theirs"))
    if qwen:
        shape: dict[str, Any] = LlamaConfig.from_pretrained(theirs).to_dict()
        dropped = {"architectures", "model_type", "mlp_bias", "rope_parameters", "transformers_version"}
        shape = {name: value for name, value in shape.items() if name not in dropped}
        Qwen3ForCausalLM(Qwen3Config(**shape)).save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text("utf-8"))
    said["rope_parameters"] = {**rope, "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(said), "utf-8")
    run = import_model(folder, tmp_path / "run")
    again = export(run, tmp_path / "again")
    same_weights(folder, again)
    sampler = Sampler(str(run))
    ids = torch.randint(0, 2048, (1, 60), generator=torch.Generator().manual_seed(0))  # longer than 16
    with torch.inference_mode():
        ours = sampler.model(ids)
        for place in (folder, again):
            reference: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
            assert (ours - reference(ids).logits).abs().max() <= 1e-4
            assert reference.config.max_position_embeddings == 64
        plain: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
        )
        assert (ours - plain(ids).logits).abs().max() > 1e-2
    del said["rope_parameters"]  # as transformers 4 wrote it
    said |= {"rope_theta": 1e4, "rope_scaling": {"type": rope["rope_type"], **rope}}
    (folder / "config.json").write_text(json.dumps(said), "utf-8")
    older = import_model(folder, tmp_path / "older")
    assert (older / "model.json").read_bytes() == (run / "model.json").read_bytes()


def test_an_imported_model_is_trained_on(run: Path, tmp_path: Path) -> None:
    shape = json.loads((run / "model.json").read_text("utf-8"))
    assert shape["model"] == LLAMA.model
    code, said = ranks.train({**shape, "out": tmp_path / "on", "start_from": run, "steps": 2}, ranks=2)
    assert code == 0, said
    assert "resumed from step 0" in said


@pytest.mark.unmeasured
def test_every_mesh_has_one_ranks_gradients(tmp_path: Path) -> None:
    settings = {"model": LLAMA.model, "tied": False, "recompute": "selective", "precision": "fp64"}
    meshes: list[dict[str, int]] = [{"tp": 2}, {"cp": 2}, {"pp": 2}]
    settings |= {"rope_scaling": "yarn:factor=4,original_max_position_embeddings=8"}  # what scales the angles too
    cells = [Cell(2, mesh, settings) for mesh in meshes]
    found = compute([cells[0].model, *cells], tmp_path)
    for cell in cells:
        assert difference(found[cell.model.name], found[cell.name]) <= 1e-10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters: got .*with llama3 factor, low"),
        (
            {"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0}},
            "rope_parameters: got .*allowed: a low_freq_factor below high_freq_factor",
        ),
        ({"attention_bias": True}, "attention_bias: got true; allowed: false"),
        ({"mlp_bias": True}, "mlp_bias: got true; allowed: false"),
    ],
)
def test_what_other_llamas_have_is_refused(theirs: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    copy = Path(shutil.copytree(theirs, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, **change}), "utf-8")
    with pytest.raises(ConfigError, match=said):
        import_model(copy, tmp_path / "run")


def test_a_shape_that_transformers_refuses_is_not_exported() -> None:
    from huggingface_hub.errors import StrictDataclassClassValidationError
    from transformers import LlamaConfig

    with pytest.raises(StrictDataclassClassValidationError, match="hidden size"):
        LlamaConfig(hidden_size=72, num_attention_heads=5, head_dim=16)
    shape = {"dim": 72, "heads": 5, "kv_heads": 5, "head_dim": 16, "context": 64}
    with pytest.raises(ConfigError, match="dim: got 72; allowed: a multiple of heads 5"):
        openable(resolve({"model": "teragpt.llama:Llama", **shape}))
    openable(resolve(shape))
