"""Heads whose width is not dim / heads: Qwen3 of 0.6, 4 and 32 billion parameters has them, and Llama may."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from teragpt.checkpoint import META
from teragpt.config import ConfigError, resolve
from teragpt.exchange.export import LLAMA, QWEN3, export, exported
from teragpt.exchange.importing import import_model
from teragpt.inference.generate import Sampling
from teragpt.inference.sample import Sampler
from teragpt.inference.trained import describe, newest
from teragpt.parallel import build_model, load_attribute
from teragpt.sizes import REFERENCE_VOCABULARY
from teragpt.storage import folder_at
from tests.teragpt import ranks
from tests.teragpt.foreign import same_weights, with_tokenizer

WIDTH = 24
PROMPTS = ["def main(", "import ", "class Node:\n    def"]
SHAPE: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": WIDTH, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
PUBLISHED = {  # of Qwen3: hidden_size, layers, heads, key/value heads, feed-forward width, tied; and its parameters
    "0.6B": ((1024, 28, 16, 8, 3072, True), 596_049_920),
    "4B": ((2560, 36, 32, 8, 9728, True), 4_022_468_096),
    "32B": ((5120, 64, 64, 8, 25_600, False), 32_762_123_264),
}
NAMES = "dim", "depth", "heads", "kv_heads", "ffn", "tied"


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def theirs(request: pytest.FixtureRequest, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as transformers saves it, with a tokenizer of ours."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("heads") / "theirs"
    torch.manual_seed(0)
    if request.param == "llama":
        LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    else:
        Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)).save_pretrained(folder)
    return with_tokenizer(folder, trained)


@pytest.fixture(scope="module")
def run(theirs: Path) -> Path:
    return import_model(theirs, theirs.parent / "run")


def test_what_is_imported_says_the_same_and_leaves_as_it_came(theirs: Path, run: Path) -> None:
    from transformers import AutoModelForCausalLM

    again = export(run, theirs.parent / "again")
    same_weights(theirs, again)
    sampler = Sampler(str(run))
    ids = torch.randint(0, 2048, (3, 60), generator=torch.Generator().manual_seed(0))
    made = list(sampler.complete(PROMPTS, Sampling(tokens=40, temperature=0, logprobs=0)))
    for folder in (theirs, again):
        reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert reference.config.head_dim == WIDTH
        with torch.inference_mode():
            assert (sampler.model(ids) - reference(ids).logits).abs().max() <= 1e-4
        for prompt, text in zip(PROMPTS, made, strict=True):  # keys and values of all three are kept together
            read = torch.tensor([sampler.tokenizer.encode(prompt)])
            expected = reference.generate(read, max_new_tokens=40, do_sample=False, eos_token_id=None)[
                0, read.size(1) :
            ]
            drawn = [one.token for one in text.drawn]
            assert drawn == expected.tolist()[: len(drawn)]


@pytest.mark.parametrize("mesh", [{}, {"tp": 2}])
def test_training_goes_on_from_it_and_what_it_learns_is_exported(
    theirs: Path, run: Path, tmp_path: Path, mesh: dict[str, int]
) -> None:
    from transformers import AutoModelForCausalLM

    shape = json.loads((run / "model.json").read_text("utf-8"))
    assert shape["head_dim"] == WIDTH
    code, said = ranks.train({**shape, **mesh, "out": tmp_path / "on", "start_from": run, "steps": 2}, ranks=2)
    assert code == 0, said
    assert "resumed from step 0" in said
    reference: Any = AutoModelForCausalLM.from_pretrained(export(tmp_path / "on", tmp_path / "out"))
    sampler = Sampler(str(tmp_path / "on"))
    ids = torch.randint(0, 2048, (1, 60))
    before: Any = AutoModelForCausalLM.from_pretrained(theirs)
    with torch.inference_mode():
        learned = sampler.model(ids)
        assert (learned - reference(ids).logits).abs().max() <= 1e-4
        assert (learned - before(ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_are_transformers_own_weight_by_weight(name: str) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    values, parameters = PUBLISHED[name]
    config = resolve({**dict(zip(NAMES, values, strict=True)), "head_dim": 128, "num_tokens": 151_936})
    said = dict(zip(("hidden_size", "num_hidden_layers", "num_attention_heads"), values, strict=False))
    said |= {"num_key_value_heads": values[3], "intermediate_size": values[4], "tie_word_embeddings": values[5]}
    with torch.device("meta"):
        theirs = Qwen3ForCausalLM(Qwen3Config(**said, vocab_size=151_936))  # its head_dim is 128 unless said
    ours = build_model(load_attribute(QWEN3.model, "model"), config)
    assert {exported(name): one.shape for name, one in ours.named_parameters()} == {
        name: one.shape for name, one in theirs.named_parameters()
    }
    assert config.shape.parameters(config.num_tokens) == sum(one.numel() for one in ours.parameters()) == parameters


def test_a_width_is_that_of_dim_and_heads_unless_it_is_given() -> None:
    derived, given = resolve({"size": "350m", "heads": 8, "kv_heads": 8}), resolve({"size": "350m", "head_dim": 96})
    assert (derived.head_dim, given.head_dim) == (128, 96)
    assert resolve({"dim": 80, "heads": 6, "head_dim": 16}).q_dim == 96  # heads that do not divide dim
    for config in (derived, given):
        matmul = config.shape.parameters() - (0 if config.tied else REFERENCE_VOCABULARY * config.dim)
        attention = 6 * config.depth * config.heads * config.head_dim * 1024
        assert config.shape.flops_per_token(REFERENCE_VOCABULARY, 1024) == 6 * matmul + attention
    with pytest.raises(ConfigError, match="head_dim: got 7; allowed: an even number"):
        resolve({"head_dim": 7})
    with pytest.raises(ConfigError, match=r"heads: got 5; allowed: heads that divide dim 128 .* or a head_dim beside"):
        resolve({"heads": 5, "kv_heads": 5})


@pytest.mark.parametrize("missing", [("head_dim",), ("head_dim", "num_key_value_heads")])
def test_a_key_that_is_missing_means_what_it_does_to_transformers(
    theirs: Path, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(theirs, tmp_path / "model"))
    said = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({key: one for key, one in said.items() if key not in missing}))
    with pytest.raises(ConfigError) as refused:
        import_model(folder, tmp_path / "run")
    told = str(refused.value)
    if said["model_type"] == LLAMA.name:  # heads of hidden_size / num_attention_heads, and as many of keys
        assert "q_proj.weight: got [96, 64]; allowed: a weight of [64, 64]" in told
        keys = "k_proj.weight: got [48, 64]; allowed: a weight of "
        assert keys + ("[64, 64]" if "num_key_value_heads" in missing else "[32, 64]") in told
    elif "num_key_value_heads" in missing:
        assert told == "kv_heads: got 32; allowed: a divisor of heads 4"
    else:
        assert "q_proj.weight: got [96, 64]; allowed: a weight of [512, 64]" in told


def test_a_checkpoint_from_before_there_were_widths_has_the_one_of_then(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    checkpoint = newest(folder_at(run, "run"))
    meta = json.loads(checkpoint.folder.read(META))
    width = meta["config"].pop("head_dim")
    checkpoint.folder.write(META, json.dumps(meta).encode())
    older, _, config = describe(run)
    assert config.head_dim == width == config.dim // config.heads
    older.verify(config)
    with pytest.raises(ConfigError, match=rf"head_dim: got {2 * width}; allowed: {width}, as in the checkpoint"):
        older.verify(replace(config, head_dim=2 * width))
