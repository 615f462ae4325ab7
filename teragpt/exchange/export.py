"""A trained model as a folder that `transformers` (and what builds on it) opens as `Qwen3ForCausalLM`, or Llama's.

Weights pass from the checkpoint to the files a few at a time, so memory holds the largest of them and not the model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from teragpt.checkpoint import Checkpoint
from teragpt.config import Config, ConfigError, Problem
from teragpt.exchange.card import card
from teragpt.inference.generate import Sampling
from teragpt.inference.trained import describe, read
from teragpt.parallel import build_model, load_attribute
from teragpt.rope import ORIGINAL, scaling
from teragpt.storage import appearing, folder_at
from teragpt.tokenization.tokenizer import Tokenizer


class Kind(NamedTuple):
    """What transformers calls a model: its `model_type`, its class, and ours."""

    name: str
    architecture: str
    model: str


QWEN3, LLAMA = (
    Kind("qwen3", "Qwen3ForCausalLM", "teragpt.model:TeraGPT"),
    Kind("llama", "LlamaForCausalLM", "teragpt.llama:Llama"),
)
KINDS = {kind.model: kind for kind in (QWEN3, LLAMA)}
VOCABULARY_ROWS = ("embed_tokens.weight", "lm_head.weight")
SHARD_BYTES = 5 * 10**9  # of a file of weights, as transformers cuts them
READ_BYTES = 1 << 28  # of weights that are read at once, where none is larger


def export(run: Path | str, out: Path | str) -> Path:
    """Write the newest checkpoint of a run as safetensors, configs, tokenizer and model card into the new folder `out`.

    The folder appears whole or not at all. Raises ConfigError when `out` exists or cannot be written, or the run has
    no checkpoint.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError([Problem("out", str(out), "a folder that does not exist yet, or an empty one")])
    described = describe(run)
    openable(described[-1])
    with appearing(target, "the model") as folder:
        write_all(run, *described, folder)
    return target


def openable(config: Config) -> None:
    """Raise ConfigError for a shape that transformers refuses to open as what it is."""
    if KINDS.get(config.model) is LLAMA and config.dim % config.heads:
        allowed = f"a multiple of heads {config.heads}, which transformers' Llama has to have"
        raise ConfigError([Problem("dim", config.dim, allowed)])


def write_all(run: Path | str, checkpoint: Checkpoint, tokenizer: Tokenizer, config: Config, folder: Path) -> None:
    """Write what transformers opens into an empty folder. Raises OSError."""
    parameters = write_weights(checkpoint, config, folder)
    tokenizer.save(folder)
    said = configuration(config, tokenizer)
    (folder / "config.json").write_text(json.dumps(said, indent=2), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation(tokenizer), indent=2), "utf-8")
    (folder / "README.md").write_text(
        card(folder_at(run, "run"), checkpoint, config, parameters, said["model_type"]), "utf-8"
    )


def write_weights(checkpoint: Checkpoint, config: Config, folder: Path) -> int:
    """Write a checkpoint's parameters as safetensors of at most SHARD_BYTES, with their index.

    Returns how many parameters those are. Raises OSError.
    """
    model = build_model(load_attribute(config.model, "model"), config)
    shapes: dict[str, Tensor] = dict(model.state_dict())  # on the meta device
    shards = list(groups({name: whole[: rows(name, config)] for name, whole in shapes.items()}, SHARD_BYTES))
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    files = files if len(files) > 1 else ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        with (folder / file).open("wb") as to:
            to.write(header(shard))
            for group in groups({name: shapes[name] for name in shard}, READ_BYTES):
                held = {name: torch.empty_like(shape, device="cpu") for name, shape in group.items()}
                read(checkpoint, held)
                for name, weight in held.items():
                    to.write(weight[: rows(name, config)].numpy().data)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(size(one) for shard in shards for one in shard.values())},
            "weight_map": {exported(name): file for file, shard in zip(files, shards, strict=True) for name in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return sum(one.numel() for shard in shards for one in shard.values())


def groups(weights: Mapping[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    """Weights in their order, in groups of at most so many bytes; one that is larger stands alone."""
    group: dict[str, Tensor] = {}
    held = 0
    for name, weight in weights.items():
        if group and held + size(weight) > most:
            yield group
            group, held = {}, 0
        group[name] = weight
        held += size(weight)
    yield group


def header(shard: Mapping[str, Tensor]) -> bytes:
    """What stands before the weights in a file of the safetensors format, whose own library wants all of them at once.

    Eight bytes of length, then JSON padded to a multiple of eight (https://github.com/huggingface/safetensors#format).
    """
    kinds = {torch.float32: "F32", torch.float64: "F64"}
    said: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, weight in shard.items():
        place = [at, at := at + size(weight)]
        said[exported(name)] = {"dtype": kinds[weight.dtype], "shape": list(weight.shape), "data_offsets": place}
    text = json.dumps(said).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def size(weight: Tensor) -> int:
    """A weight's bytes."""
    return weight.numel() * weight.element_size()


def rows(name: str, config: Config) -> int | None:
    """How many rows of a weight are exported: of a vocabulary's, not those that pad it; None: all."""
    return config.num_tokens if name.endswith(VOCABULARY_ROWS) else None


def exported(name: str) -> str:
    """A parameter's name in Qwen3 and Llama."""
    return name if name.startswith("lm_head") else f"model.{name}"


def configuration(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """The `config.json` of the same shape; RoPE's base stands under the names of transformers 4 and 5."""
    kind = KINDS.get(config.model, QWEN3)
    return {
        "architectures": [kind.architecture],
        "model_type": kind.name,
        **({"mlp_bias": False} if kind is LLAMA else {}),
        "vocab_size": config.num_tokens,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        **rope_of(config),
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": tokenizer.end,
    }


def rope_of(config: Config) -> dict[str, Any]:
    """How positions turn: what transformers 5 reads and, where they are scaled, what 4 reads."""
    found, base = scaling(config.rope_scaling), {"rope_theta": config.rope_theta}
    if found is None:
        return {"rope_parameters": {"rope_type": "default", **base}}
    said: dict[str, Any] = {"rope_type": found.kind, **found.numbers}
    if ORIGINAL in said:
        said[ORIGINAL] = int(found.numbers[ORIGINAL])
    return {"rope_parameters": {**said, **base}, "rope_scaling": said}


def generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """The `generation_config.json`: what ends a text, and how `teragpt sample` draws unless told otherwise."""
    usual = Sampling()
    return {
        "eos_token_id": sorted(tokenizer.ends),
        "pad_token_id": tokenizer.end,
        "do_sample": True,
        "temperature": usual.temperature,
        "top_k": usual.top_k,
        "top_p": usual.top_p,
    }


def main(arguments: Sequence[str]) -> int:
    """`python -m teragpt.exchange.export RUN_FOLDER OUT`."""
    try:
        run, out = arguments
        print(export(run, out))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValueError:
        print("usage: python -m teragpt.exchange.export RUN_FOLDER OUT", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
