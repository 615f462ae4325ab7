"""A folder of `transformers`' Qwen3 or Llama as a run folder with one checkpoint, from which training goes on.

Weights come as safetensors only, since nothing else can be read without running it. What this model is not made of is
refused with what differs. It must not know how training goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from teragpt.checkpoint import META, as_json
from teragpt.config import Config, ConfigError, Problem, resolve, shown
from teragpt.exchange.export import KINDS, configuration
from teragpt.exchange.weights import Weights, read_json, write_state
from teragpt.rope import ORIGINAL, SCALINGS, checked
from teragpt.sizes import TINY
from teragpt.storage import Disk, appearing
from teragpt.tokenization.tokenizer import Tokenizer

FREE = {  # keys of config.json that change no weight and no result
    "bos_token_id", "dtype", "torch_dtype", "use_cache", "initializer_range", "attention_dropout",
    "max_position_embeddings", "eos_token_id", "rope_theta", "rope_parameters", "rope_scaling",
}  # fmt: skip
UNKNOWN = {  # keys that change results where they are on, and what this model has instead
    "use_sliding_window": "none: attention here is full",
    "quantization_config": "none: weights have to be floating-point numbers",
}
ROPE = ("rope_type", "type", "rope_theta")  # of rotary positions; `type` is the older name
AS_EVER = {"partial_rotary_factor": 1, "truncate": True}  # what may be said of them where it changes nothing
ROPES = "rotary positions of rope_type 'default', 'linear', 'llama3' or 'yarn', over the whole head"
OTHER_ROPES = {
    "dynamic": "its angles change with the length of what is read, so that keys could not be kept",
    "longrope": "its frequencies are two lists, for short texts and for long ones",
}
DIFFERENT = {  # what else would have to be the same
    "MistralForCausalLM": "its attention may see a window of tokens alone",
    "Qwen2ForCausalLM": "its attention adds biases to queries, keys and values",
    "Qwen3MoeForCausalLM": "its feed-forward layers are several experts each",
    "GPT2LMHeadModel": "its positions are learned, its norms and layers have biases, its feed-forward has no gate",
}
UNSAID: dict[str, dict[str, Any]] = {  # what is meant where a key is missing
    "Qwen3ForCausalLM": {"num_key_value_heads": 32, "head_dim": 128}
}
OURS = "RMSNorm, rotary positions, a feed-forward gated by SiLU, and no biases"
SHAPE = (
    "dim", "depth", "heads", "kv_heads", "head_dim", "ffn", "num_tokens", "tied", "rope_theta", "rope_scaling",
    "norm_eps", "model", "optimizer",
)  # fmt: skip
SETTINGS = "model.json"  # those of the model, for `teragpt.train --config`


def import_model(folder: Path | str, out: Path | str) -> Path:
    """Write the model in `folder` as the run folder `out`, which appears whole or not at all.

    Memory holds the largest weight, and not the model.

    Raises ConfigError for another architecture, for weights that are missing, of another shape or not finite, for a
    tokenizer that is not the model's, and when `out` exists or cannot be written.
    """
    source, target = Path(folder), Path(out)
    if target.exists():
        raise ConfigError([Problem("out", str(out), "a folder that does not exist yet")])
    if not source.is_dir():
        raise ConfigError([Problem("model", str(folder), "a folder that transformers saved a model in")])
    tokenizer = Tokenizer(str(source))
    config = config_of(source, tokenizer)
    weights = Weights(source, config)
    with appearing(target, "the checkpoint") as draft:
        write_run(weights, tokenizer, config, draft)
    return target


def write_run(weights: Weights, tokenizer: Tokenizer, config: Config, draft: Path) -> None:
    """Write the run folder of a model at step 0. Raises ConfigError for weights that are not finite, and OSError."""
    checkpoint = Disk(draft / "checkpoints" / "step-00000000-attempt-1")
    checkpoint.path.mkdir(parents=True)
    write_state(weights, checkpoint)
    tokenizer.save(draft / "tokenizer")
    (draft / "config.json").write_bytes(as_json(asdict(config)))
    (draft / SETTINGS).write_bytes(as_json({name: getattr(config, name) for name in SHAPE}))
    about = {"step": 0, "attempt": 1, "data": "", "torch": str(torch.__version__), "ranks": 1, "config": asdict(config)}
    progress = {"step": 0, "skipped": 0, "rewinds": 0}
    files = dict(sorted(checkpoint.entries().items()))
    checkpoint.write(META, as_json({**about, "progress": progress, "files": files, "time": time.time()}))


def config_of(folder: Path, tokenizer: Tokenizer) -> Config:
    """The settings of the same shape. Raises ConfigError with all that differs from what this model can be."""
    said = read_json(folder / "config.json")
    given = said.get("architectures")
    named = given[0] if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str) else ""
    ours = {kind.architecture: kind.model for kind in KINDS.values()}
    if named not in ours:
        why = DIFFERENT.get(named, f"the models here have {OURS}")
        raise ConfigError([Problem("architectures", given, f"{' or '.join(str([name]) for name in ours)} ({why})")])
    said = {**UNSAID.get(named, {}), **said}
    kv_heads, width = said.get("num_key_value_heads"), said.get("head_dim")
    theta, scaled = rope_of(said)
    longest = said.get("max_position_embeddings")
    try:
        config = resolve(
            {
                "size": TINY,
                "model": ours[named],
                "dim": said["hidden_size"],
                "depth": said["num_hidden_layers"],
                "heads": said["num_attention_heads"],
                "kv_heads": said["num_attention_heads"] if kv_heads is None else kv_heads,
                **({} if width is None else {"head_dim": width}),
                "ffn": said["intermediate_size"],
                "num_tokens": said["vocab_size"],
                "tied": said.get("tie_word_embeddings", False),
                "rope_theta": theta,
                "rope_scaling": scaled,
                "norm_eps": said["rms_norm_eps"],
                "optimizer": "adamw",  # its empty moments, whatever the size that training goes on with has
                **({} if longest is None else {"context": longest}),
            }
        )
    except KeyError as error:
        raise ConfigError([Problem("config.json", str(folder), f"a configuration with {error}")]) from None
    problems = [
        Problem(name, said[name], f"{shown(value)}, as this model has it")
        for name, value in configuration(config, tokenizer).items()
        if said.get(name) is not None and name not in FREE and said[name] != value
    ]
    problems += [Problem(name, said[name], allowed) for name, allowed in UNKNOWN.items() if said.get(name)]
    kinds = said.get("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        problems.append(Problem("layer_types", kinds, "'full_attention' in every layer"))
    if tokenizer.vocabulary > config.num_tokens:
        allowed = f"at least the tokenizer's vocabulary of {tokenizer.vocabulary}"
        problems.append(Problem("vocab_size", config.num_tokens, allowed))
    if problems:
        raise ConfigError(problems)
    return config


def rope_of(said: Mapping[str, Any]) -> tuple[float, str]:
    """The base of the rotary positions, and how they are scaled. Raises ConfigError."""
    problems: list[Problem] = []
    bases = [said["rope_theta"]] if "rope_theta" in said else []
    found: dict[str, str] = {}
    for name in ("rope_parameters", "rope_scaling"):
        if not (rope := said.get(name)):
            continue
        try:
            found[name] = scaling_of(rope, said.get("max_position_embeddings"))
        except ValueError as error:
            problems.append(Problem(name, rope, str(error)))
            continue
        if "rope_theta" in rope:
            bases.append(rope["rope_theta"])
    if len(found) > 1 and found["rope_parameters"] not in {"", found["rope_scaling"]}:
        problems.append(Problem("rope_scaling", said["rope_scaling"], "the same as rope_parameters, or nothing"))
    if said.get("partial_rotary_factor") not in (None, 1):
        problems.append(Problem("partial_rotary_factor", said["partial_rotary_factor"], "1: the whole head is turned"))
    if any(isinstance(base, bool) or not isinstance(base, int | float) for base in bases) or len(set(bases)) > 1:
        problems.append(Problem("rope_theta", bases, "one number"))
    if problems:
        raise ConfigError(problems)
    return float(bases[0]) if bases else 10_000.0, found.get("rope_scaling") or found.get("rope_parameters", "")


def scaling_of(rope: object, context: object) -> str:
    """The scaling that a `rope_parameters` says, as rope.py has it, of a model of so many positions.

    Raises ValueError that says what is allowed.
    """
    if not isinstance(rope, dict):
        raise ValueError(ROPES)  # noqa: TRY004 - its caller names the field
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    numbers = {key: one for key, one in rope.items() if key not in ROPE and one not in (None, AS_EVER.get(key))}
    if kind not in {"default", *SCALINGS} or (kind == "default" and numbers.keys() - {"factor", ORIGINAL}):
        raise ValueError(f"{ROPES} ({OTHER_ROPES[kind]})" if kind in OTHER_ROPES else ROPES)
    if kind == "default":
        return ""
    if ORIGINAL in SCALINGS[kind].needed:
        numbers.setdefault(ORIGINAL, context)
    wrong = [name for name, one in numbers.items() if isinstance(one, bool) or not isinstance(one, int | float)]
    if wrong:
        raise ValueError(f"numbers, as which {', '.join(wrong)} cannot be read")
    return str(checked(kind, numbers))
