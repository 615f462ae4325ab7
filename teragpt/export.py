"""A trained model as a folder that `transformers` (and what builds on it) opens as `Qwen3ForCausalLM`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from teragpt.config import Config, ConfigError, Problem
from teragpt.tokenizer import Tokenizer
from teragpt.trained import load

VOCABULARY_ROWS = ("embed_tokens.weight", "lm_head.weight")


def export(run: Path | str, out: Path | str) -> Path:
    """Write the newest checkpoint of the run folder as safetensors, config and tokenizer into the new folder `out`.

    The folder appears whole or not at all. Raises ConfigError when `out` exists, or the run has no checkpoint.
    """
    from huggingface_hub import save_torch_state_dict

    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError([Problem("out", str(out), "a folder that does not exist yet, or an empty one")])
    model, tokenizer, config = load(run)
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_torch_state_dict(weights(dict(model.state_dict()), config), temporary)
    tokenizer.save(temporary)
    (temporary / "config.json").write_text(json.dumps(qwen3(config, tokenizer), indent=2), "utf-8")
    mode = (temporary / "config.json").stat().st_mode
    for file in temporary.iterdir():
        file.chmod(mode)  # safetensors writes for the owner alone, whatever the umask
    if target.exists():
        target.rmdir()
    temporary.replace(target)
    return target


def weights(state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The parameters under Qwen3's names, without the rows that pad the vocabulary."""
    renamed = {name if name.startswith("lm_head") else f"model.{name}": value for name, value in state.items()}
    return {
        name: value[: config.num_tokens].clone() if name.endswith(VOCABULARY_ROWS) else value
        for name, value in renamed.items()
    }


def qwen3(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """The `config.json` of the same shape; RoPE's base stands under the names of transformers 4 and 5."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.num_tokens,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.dim // config.heads,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
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


def main(arguments: Sequence[str]) -> int:
    """`python -m teragpt.export RUN_FOLDER OUT`."""
    try:
        run, out = arguments
        print(export(run, out))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValueError:
        print("usage: python -m teragpt.export RUN_FOLDER OUT", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
