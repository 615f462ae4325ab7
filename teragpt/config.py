"""Every setting of a training run in one frozen table: what it means, what it derives from, what is allowed.

Torch-free: the trainer reads it, and the control plane validates a run's `train` section with it before anything is
created. A run is described by the settings that its user gave; `resolve` derives the rest from the size.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, cast, get_type_hints

from teragpt.activations import CORES_BUDGET, micro_batch
from teragpt.rope import scaling
from teragpt.sizes import REFERENCE_VOCABULARY, SIZES, TINY, TINY_RECIPE, Shape, padded, recipe

EMBEDDED_VOCABULARY = 2048  # of the byte-level BPE trained on the embedded corpus
EVAL_SEQUENCES = 64  # the least for a loss that means something
TRACKERS = ("wandb", "mlflow")
FP8_MULTIPLE = 16  # what each side of a product must be a multiple of (torch._scaled_mm on CUDA)
ROWWISE_ON_CPU = (2, 15)  # the first torch whose scaled product takes a scale for each row without a GPU
FP32_BYTES = 4
WARMUP_STEPS = 2_000  # Bi et al. 2024, section 3.1; a twentieth of a run that is shorter than 40,000 steps


def shown(value: object) -> str:
    """A value as it is written where settings are: in JSON, not in Python."""
    return "nothing" if value is None else json.dumps(value) if isinstance(value, bool) else repr(value)


@dataclass(frozen=True)
class Problem:
    """One bad setting: its `field`, what was `given`, what is `allowed`."""

    field: str
    given: object
    allowed: str

    @property
    def detail(self) -> str:
        """What was given and what is allowed, for who knows the field."""
        return f"got {shown(self.given)}; allowed: {self.allowed}"

    def __str__(self) -> str:
        return f"{self.field}: {self.detail}"


class UnknownSetting(Problem):
    """A setting that does not exist; `allowed` tells those that do."""

    @property
    def detail(self) -> str:
        """The name that was probably meant, else every name."""
        meant = difflib.get_close_matches(self.field, FIELDS, n=1)
        return f"there is no such setting; {f'did you mean {meant[0]}?' if meant else f'there are {self.allowed}'}"


class ConfigError(ValueError):
    """Settings that cannot be used, with every problem found in them (`problems`). Exit code 2: never retried."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled whole, for the other ranks, and as what it is: exceptions are made anew of their message alone."""
        return remade, (type(self), str(self), self.__dict__)


def remade(kind: type[ConfigError], said: str, held: Mapping[str, Any]) -> ConfigError:
    """A ConfigError that was pickled."""
    error = kind.__new__(kind, said)
    error.__dict__.update(held)
    return error


def setting(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A field of `Config`: `low` and `high` bound numbers (both included), `choices` lists the words allowed."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Config:
    """A resolved training run. Zero or empty stands for "derived" only in what a user gives, never after `resolve`."""

    size: str = setting(TINY, "Named size that everything else derives from.", choices=tuple(SIZES))
    dim: int = setting(0, "Model width.", low=8, high=1 << 17)
    depth: int = setting(0, "Number of blocks.", low=1, high=1024)
    heads: int = setting(0, "Query heads.", low=1, high=1024)
    kv_heads: int = setting(0, "Key and value heads; must divide heads.", low=1, high=1024)
    head_dim: int = setting(0, "Width of one head, an even number; dim / heads unless given.", low=2, high=1 << 17)
    ffn: int = setting(0, "Width of the feed-forward layer.", low=8, high=1 << 20)
    context: int = setting(0, "Tokens of one sequence.", low=8, high=1 << 22)
    num_tokens: int = setting(0, "Vocabulary; padded to a multiple of 128 inside the model.", low=2, high=1 << 22)
    tied: bool = setting(default=False, help="Whether the output is a linear over the embedding's weight.")
    rope_theta: float = setting(0.0, "Base of the rotary position embedding.", low=1.0, high=1e9)
    rope_scaling: str = setting(
        "", "How rotary frequencies are scaled for longer texts, as llama3:factor=8,...; empty: not at all."
    )
    norm_eps: float = setting(1e-6, "Added to the mean square in every RMSNorm.", low=1e-12, high=1e-2)

    data: str = setting(
        "", "Folder or URL of a dataset of `teragpt prepare`, or several: web:0.7,code:0.3; empty: the embedded corpus."
    )
    packing: str = setting(
        "plain",
        "Whether attention in a sequence crosses documents (plain), or stays within each (documents).",
        choices=("plain", "documents"),
    )
    tokenizer: str = setting("", "Tokenizer the dataset must have been made with; empty: the dataset's own.")
    seed: int = setting(0, "Seed of initial weights and data order.", low=0, high=(1 << 63) - 1)
    out: str = setting("runs/tiny", "Run folder, a path or a URL: metrics.jsonl, config.json, checkpoints.")

    start_from: str = setting(
        "", "Run folder, or one checkpoint's, that this run starts from while it has no checkpoint of its own."
    )

    tokens: int = setting(0, "Token budget; 20 tokens a parameter unless given.", low=1, high=10**16)
    global_batch_tokens: int = setting(
        0, "Tokens of one step over all ranks; a multiple of context.", low=8, high=1 << 32
    )
    steps: int = setting(0, "Optimizer steps; tokens / global_batch_tokens unless given.", low=1, high=10**9)
    micro_batch: int = setting(
        0, "Sequences a rank takes through the model at once; fewer without a GPU, unless given.", low=1, high=1 << 20
    )
    optimizer: str = setting(
        "adamw",
        "What updates the blocks' matrices, as in the checkpoint that a run goes on from; adamw updates all else.",
        choices=("adamw", "muon"),
    )
    state_dtype: str = setting(
        "fp32",
        "What weights and AdamW's moments are kept in; bf16, rounded at random, takes half the memory.",
        choices=("fp32", "bf16"),
    )
    learning_rate: float = setting(0.0, "Peak learning rate.", low=1e-9, high=10.0)
    final_learning_rate: float = setting(
        0.1, "Learning rate that the decay comes to after the last step, as a part of the peak.", low=0.0, high=1.0
    )
    warmup_steps: int = setting(-1, "Steps of linear warm-up.", low=0, high=10**9)
    schedule: str = setting("cosine", "Decay of the learning rate after warm-up.", choices=("cosine", "wsd"))
    decay_fraction: float = setting(0.2, "With wsd: the last part of the steps, in which it decays.", low=0.0, high=1.0)
    weight_decay: float = setting(0.1, "Decay of matrices; vectors never decay.", low=0.0, high=10.0)
    beta1: float = setting(0.9, "AdamW's first-moment decay.", low=0.0, high=0.9999999)
    beta2: float = setting(0.95, "AdamW's second-moment decay.", low=0.0, high=0.9999999)
    epsilon: float = setting(1e-8, "AdamW's epsilon.", low=1e-16, high=1.0)
    z_loss: float = setting(
        0.0, "Weight of the z-loss, the squared log of softmax's sum, beside the loss that is told.", low=0.0, high=1.0
    )
    clip: float = setting(1.0, "Largest gradient norm; gradients beyond it are scaled down.", low=1e-9, high=1e9)

    log_every: int = setting(1, "Steps between printed lines.", low=1, high=10**9)
    trackers: str = setting(
        "", "Who gets the metrics beside metrics.jsonl and TensorBoard's files: wandb, mlflow, or both with a comma."
    )
    log_norms: bool = setting(default=False, help="Also record the norm of each layer's gradient.")
    eval_every: int = setting(0, "Steps between evaluations; a tenth of the run unless given.", low=1, high=10**9)
    eval_sequences: int = setting(
        0, "Held-out sequences of one evaluation; a global batch's, 64 at least, unless given.", low=1, high=1 << 20
    )
    checkpoint_every: int = setting(0, "Steps between checkpoints; a tenth of the run unless given.", low=1, high=10**9)
    keep_last: int = setting(2, "Newest checkpoints kept.", low=1, high=10**6)
    keep_every: int = setting(0, "Also keep checkpoints at multiples of this many steps; 0: none.", low=0, high=10**9)
    max_rewinds: int = setting(
        2, "Rewinds to the last good checkpoint before a divergence ends the run.", low=0, high=100
    )

    max_seconds: int = setting(
        0, "Seconds after which an attempt writes a checkpoint and ends with code 143; 0: no limit.", low=0, high=10**9
    )
    start_timeout: int = setting(1800, "Seconds that the first step may take, compilation included.", low=1, high=10**6)
    step_timeout: int = setting(
        600, "Seconds that a later step may take, with its evaluation and waits for storage.", low=1, high=10**6
    )
    check_up: str = setting(
        "auto",
        "Measure each rank and link at start, and name the slow; auto: on GPU only.",
        choices=("auto", "on", "off"),
    )

    deterministic: bool = setting(default=False, help="Two runs on the same machines are equal to the last bit.")
    precision: str = setting(
        "auto",
        "auto: bf16 on GPU, fp32 on CPU; fp8: the same but for products of blocks.",
        choices=("auto", "fp32", "bf16", "fp8", "fp64"),
    )
    fp8_recipe: str = setting(
        "tensorwise", "With fp8: a scale for each tensor, or for each row.", choices=("tensorwise", "rowwise")
    )
    compile: str = setting("auto", "auto: blocks are compiled on GPU only.", choices=("auto", "on", "off"))
    recompute: str = setting(
        "none",
        "What backward computes again: nothing; all but products and attention (selective); whole blocks (full).",
        choices=("none", "selective", "full"),
    )
    recompute_layers: int = setting(
        0, "Of a stage's layers, how many do so: the first, while others keep everything; 0: all.", low=0, high=1024
    )
    gathered: str = setting(
        "auto",
        "Weights stay gathered, and gradients whole, for all of a step; auto: where these take 8 GiB or less.",
        choices=("auto", "on", "off"),
    )
    dp_replicate: int = setting(1, "Replicas of the sharded model; must divide the world size.", low=1, high=1 << 20)
    tp: int = setting(1, "Ranks that share each matrix (tensor parallel); must divide kv_heads.", low=1, high=1024)
    cp: int = setting(1, "Ranks that share each sequence (context parallel).", low=1, high=1024)
    pp: int = setting(1, "Ranks that share the layers (pipeline parallel).", low=1, high=1024)
    pipeline_schedule: str = setting(
        "1f1b",
        "How micro-batches go through the ranks of pp: once each (1f1b), or several times (interleaved: less waiting).",
        choices=("1f1b", "interleaved"),
    )
    pipeline_chunks: int = setting(
        0, "Stages on each rank of pp: 1 with 1f1b, 2 interleaved, unless given.", low=1, high=64
    )
    model: str = setting("teragpt.model:TeraGPT", "The model's constructor, as module:attribute.")
    loader: str = setting("teragpt.data:open_dataset", "The dataset's constructor, as module:attribute.")

    @property
    def sequences(self) -> int:
        """Sequences of one global batch."""
        return self.global_batch_tokens // self.context

    @property
    def shape(self) -> Shape:
        """The model's shape, for counting."""
        return Shape(**{name: getattr(self, name) for name in Shape.__dataclass_fields__})

    @property
    def q_dim(self) -> int:
        """Width of all query heads side by side."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim


# What the tensors of a state follow.
TENSORS = "dim", "depth", "heads", "kv_heads", "head_dim", "ffn", "num_tokens", "tied", "optimizer"
FIELDS = {f.name: f for f in dataclasses.fields(Config)}
TYPES: dict[str, type] = get_type_hints(Config)


def resolve(given: Mapping[str, object], vocabulary: int | None = None) -> Config:
    """The whole configuration that the settings `given` describe; `vocabulary` is the dataset's, where it is known.

    Raises ConfigError with every problem: unknown settings, wrong types, numbers out of range, shapes that don't fit.
    """
    given = {"size": TINY, **given}
    if isinstance(given["size"], str):
        given["size"] = given["size"].lower()
    problems = [problem for name, value in given.items() if (problem := check(name, value))]
    if problems:
        raise ConfigError(problems)
    settings = {name: TYPES[name](value) for name, value in given.items()}
    config = Config(**derive(settings, vocabulary))
    problems = list(misfits(config, given))
    if problems:
        raise ConfigError(problems)
    return config


def for_cores(config: Config, given: Mapping[str, object]) -> Config:
    """The configuration of ranks without a GPU: they take fewer sequences at once, unless it is `given` how many."""
    if "micro_batch" in given:
        return config
    fewer = micro_batch(config.shape, config.micro_batch, config.recompute, CORES_BUDGET, FP32_BYTES)
    return replace(config, micro_batch=fewer)


def kept(settings: Mapping[str, Any]) -> Config:
    """The configuration that was kept as `settings`, by a version that may have known fewer of them, or more."""
    known = {name: value for name, value in settings.items() if name in FIELDS}
    config = Config(**known)
    return config if config.head_dim or not config.heads else replace(config, head_dim=config.dim // config.heads)


def check(name: str, value: object) -> Problem | None:
    """The problem with one setting taken alone, if there is one."""
    if name not in FIELDS:
        return UnknownSetting(name, value, ", ".join(FIELDS))
    kind, rules = TYPES[name], FIELDS[name].metadata
    if kind is str:
        words = rules["choices"]
        good = isinstance(value, str) and (not words or value in words)
        return None if good else Problem(name, value, f"one of {', '.join(words)}" if words else "text")
    if kind is bool:
        return None if isinstance(value, bool) else Problem(name, value, "true or false")
    low, high = rules["low"], rules["high"]
    allowed = f"{'a whole number' if kind is int else 'a number'} from {low:,} to {high:,}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return Problem(name, value, allowed)
    return None if low <= value <= high and (kind is float or value == int(value)) else Problem(name, value, allowed)


def check_shape(derived: Mapping[str, object | None], **given: object) -> None:
    """Raise ConfigError for what no model can have; what is `derived` may be None.

    Whole numbers are integers here, since tensors have their size.
    """
    problems: list[Problem] = []
    for name, value in {**{key: one for key, one in derived.items() if one is not None}, **given}.items():
        whole = type(value) is not bool and isinstance(value, Integral)
        problem = check(name, int(cast("int", value)) if whole else value)  # an integer of another library is one
        if not problem and not whole and TYPES[name] is int:
            problem = Problem(name, value, "an integer")
        if name == "rope_scaling" and not problem:
            problem = next(iter(rope_misfits(str(value))), None)
        problems += [problem] if problem else []
    if problems:
        raise ConfigError(problems)


def derive(settings: dict[str, Any], vocabulary: int | None) -> dict[str, Any]:
    """The settings with everything that was not given derived from those that were."""
    size = SIZES[settings["size"]]
    full = {**{name: getattr(size, name) for name in Shape.__dataclass_fields__}, **settings}
    embedded = not full.get("data")
    full.setdefault("num_tokens", vocabulary or (EMBEDDED_VOCABULARY if embedded else REFERENCE_VOCABULARY))
    if size.kv_heads == size.heads and "kv_heads" not in settings:
        full["kv_heads"] = full["heads"]
    full["head_dim"] = settings.get("head_dim", full["dim"] // full["heads"])
    shape = Shape(**{name: full[name] for name in Shape.__dataclass_fields__})
    tiny = full["size"] == TINY
    derived = TINY_RECIPE if tiny else recipe(shape, full["num_tokens"], shape.context, full.get("tokens"))
    full.setdefault("rope_theta", derived.rope_theta)
    full.setdefault("optimizer", "adamw" if full.get("state_dtype") == "bf16" else derived.optimizer)
    full.setdefault("learning_rate", derived.learning_rate)
    full.setdefault("global_batch_tokens", max(1, derived.batch // shape.context) * shape.context)
    full.setdefault("steps", max(1, full.get("tokens", derived.tokens) // full["global_batch_tokens"]))
    full["tokens"] = full["steps"] * full["global_batch_tokens"]
    full.setdefault("warmup_steps", min(WARMUP_STEPS, full["steps"] // 20))
    full.setdefault("eval_every", max(1, full["steps"] // 10))
    full.setdefault("eval_sequences", max(EVAL_SEQUENCES, full["global_batch_tokens"] // shape.context))
    full.setdefault("checkpoint_every", max(1, full["steps"] // 10))
    sequences = full["global_batch_tokens"] // shape.context
    full.setdefault("micro_batch", micro_batch(shape, sequences, full.get("recompute", "none")))
    full.setdefault("pipeline_chunks", 2 if full.get("pipeline_schedule") == "interleaved" else 1)
    full["out"] = full.get("out") or f"runs/{full['size']}"
    return full


def misfits(config: Config, given: Mapping[str, object]) -> Iterable[Problem]:
    """Problems between settings: each names the one that its user gave, or else the first of the two."""

    def blame(*names: str) -> tuple[str, object]:
        name = next((name for name in names if name in given), names[0])
        return name, getattr(config, name)

    yield from head_misfits(config, given, blame)
    if config.global_batch_tokens % config.context:
        yield Problem(*blame("global_batch_tokens", "context"), f"a multiple of context {config.context}")
    if "steps" in given and given.get("tokens", config.tokens) != config.tokens:
        yield Problem(
            "tokens", given["tokens"], f"{config.tokens}, which {config.steps} steps take; give one of the two"
        )
    yield from rope_misfits(config.rope_scaling)
    yield from mesh_misfits(config, blame)
    yield from precision_misfits(config, blame)
    yield from recompute_misfits(config, blame)
    yield from idle(config)
    if config.warmup_steps > config.steps:
        yield Problem(*blame("warmup_steps", "steps"), f"at most steps {config.steps}")
    if not {name.strip() for name in config.trackers.split(",")} <= {"", *TRACKERS}:
        yield Problem("trackers", config.trackers, f"{', '.join(TRACKERS)}, or both with a comma")
    for name in ("model", "loader"):
        module, _, attribute = getattr(config, name).partition(":")
        if not (module and attribute):
            yield Problem(name, getattr(config, name), "module:attribute")


def head_misfits(
    config: Config, given: Mapping[str, object], blame: Callable[..., tuple[str, object]]
) -> Iterable[Problem]:
    """Heads of an uneven width, and queries that share no keys evenly."""
    if "head_dim" in given and config.head_dim % 2:
        yield Problem("head_dim", config.head_dim, "an even number, since rotary positions turn pairs")
    if "head_dim" not in given and (config.dim % config.heads or config.head_dim % 2):
        allowed = f"heads that divide dim {config.dim} into an even head width, or a head_dim beside them"
        yield Problem(*blame("heads", "dim"), allowed)
    if config.heads % config.kv_heads:
        yield Problem(*blame("kv_heads", "heads"), f"a divisor of heads {config.heads}")


def rope_misfits(rope_scaling: str) -> Iterable[Problem]:
    """What is wrong with how rotary frequencies are scaled."""
    try:
        scaling(rope_scaling)
    except ValueError as error:
        yield Problem("rope_scaling", rope_scaling, str(error))


def mesh_misfits(config: Config, blame: Callable[..., tuple[str, object]]) -> Iterable[Problem]:
    """Shapes that the mesh cannot cut evenly."""
    for name in ("kv_heads", "ffn"):
        if getattr(config, name) % config.tp:
            yield Problem(*blame("tp", name), f"a divisor of {name} {getattr(config, name)}")
    if padded(config.num_tokens) % config.tp:
        yield Problem("tp", config.tp, f"a divisor of the padded vocabulary {padded(config.num_tokens)}")
    pieces = config.tp if config.cp == 1 else 2 * config.cp * config.tp
    if config.context % pieces:
        name, value = blame("context", "cp", "tp")
        whole = f"a multiple of {pieces}" if name == "context" else f"one that cuts context {config.context} evenly"
        yield Problem(name, value, f"{whole}, for tp {config.tp} and cp {config.cp}")
    if config.pp > config.depth:
        yield Problem(*blame("pp", "depth"), f"at most depth {config.depth}")
    elif config.pp * config.pipeline_chunks > config.depth:
        yield Problem(*blame("pipeline_chunks", "pp", "depth"), f"pp x pipeline_chunks of at most depth {config.depth}")
    if (config.pipeline_chunks > 1) != (config.pipeline_schedule == "interleaved"):
        allowed = "2 or more with pipeline_schedule interleaved, 1 without"
        yield Problem("pipeline_chunks", config.pipeline_chunks, allowed)


def recompute_misfits(config: Config, blame: Callable[..., tuple[str, object]]) -> Iterable[Problem]:
    """Layers that are to compute again what nothing does."""
    if config.recompute_layers and config.recompute == "none":
        yield Problem(*blame("recompute_layers", "recompute"), "0 with recompute none, which computes nothing again")
    elif config.recompute_layers > config.depth:
        yield Problem(*blame("recompute_layers", "depth"), f"at most depth {config.depth}, or 0 for all layers")


def idle(config: Config) -> Iterable[Problem]:
    """Settings of what is not in use: whoever gave one would wait for its effect. A default is no wish."""
    users = {"decay_fraction": ("schedule", "wsd"), "fp8_recipe": ("precision", "fp8")}
    for name, (user, word) in users.items():
        if getattr(config, user) != word and getattr(config, name) != FIELDS[name].default:
            yield Problem(name, getattr(config, name), f"nothing, unless {user} is {word}")


def precision_misfits(config: Config, blame: Callable[..., tuple[str, object]]) -> Iterable[Problem]:
    """What cannot be kept in bf16, and widths and lengths that fp8's products cannot take on each rank."""
    if config.state_dtype == "bf16" and (config.optimizer == "muon" or config.precision == "fp64"):
        name, value = blame("state_dtype", "optimizer", "precision")
        yield Problem(name, value, "state_dtype fp32 with optimizer muon or precision fp64")
    widths = {"dim": 1, "kv_heads": config.tp, "ffn": config.tp, "context": config.cp}
    for name, ranks in widths.items() if config.precision == "fp8" else ():
        each = config.head_dim if name == "kv_heads" else 1
        if each * getattr(config, name) % (FP8_MULTIPLE * ranks):
            step = FP8_MULTIPLE * ranks // math.gcd(each, FP8_MULTIPLE * ranks)
            yield Problem(*blame(name, "tp", "cp", "precision"), f"with precision fp8: {name} a multiple of {step}")


def parse(arguments: Iterable[str]) -> dict[str, object]:
    """Settings from a command line: `--key value`, `--key=value`, `--set key=value`, `--config FILE` (JSON).

    Values are read as JSON where they are JSON, as text where the setting is text. A later one wins. Raises
    ConfigError.
    """
    settings: dict[str, object] = {}
    words = iter(arguments)
    for word in words:
        if word[2:3] in {"", "="} or not word.startswith("--"):
            raise ConfigError([Problem(word, word, "--key value, --set key=value or --config FILE")])
        key, equals, value = word[2:].partition("=")
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                raise ConfigError([Problem(key, None, "a value after it")]) from None
        if key == "config":
            settings |= load(Path(value))
            continue
        if key == "set":
            given = value
            key, equals, value = given.partition("=")
            if not key or not equals:
                raise ConfigError([Problem("set", given, "key=value")])
        settings[key.replace("-", "_")] = literal(key.replace("-", "_"), value)
    return settings


def literal(name: str, value: str) -> object:
    """What a setting's text means: the text itself for text settings, else JSON (or the text, to be refused)."""
    if TYPES.get(name) is str:
        return value
    try:
        return decode(value)
    except ValueError:
        return value


def load(path: Path) -> dict[str, object]:
    """Settings from a JSON file. Raises ConfigError that names the file."""
    try:
        return parse_spec(path.read_text("utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("config", str(path), f"a readable JSON file ({error})")]) from None


def parse_spec(text: str, source: str = "TERAGPT_SPEC") -> dict[str, object]:
    """Settings from a JSON object. Raises ConfigError that names where it came from."""
    try:
        settings = decode(text)
    except ValueError as error:
        raise ConfigError([Problem("config", source, f"a JSON object of settings ({error})")]) from None
    if not isinstance(settings, dict):
        raise ConfigError([Problem("config", source, "a JSON object of settings")])
    return settings


def decode(text: str) -> object:
    """A JSON text's value. Raises ValueError, also where an object says one thing twice, or nests without end."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it says {next(name for name in names if names.count(name) > 1)!r} more than once")
    return found
