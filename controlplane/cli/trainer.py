"""Commands that run the trainer's own code: `sample`, `export`, `import`, `pull`, `prepare`, `tokenizer`.

Here, where the [train] extra is needed; for a model that lies elsewhere, in a pod that the control plane starts there.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.cli import output, remote
from controlplane.cli.contexts import connect
from controlplane.cli.errors import CliError, Code, missing_extra
from controlplane.cli.follow import ENDED, called
from controlplane.cli.options import Context, Json, RunFolder, RunName, Url
from controlplane.cli.runs import find, some
from controlplane.runfolder import last_checkpoint

Temperature = Annotated[float, typer.Option("--temperature", min=0, help="0 takes the likeliest token.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Only the k likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option("--top-p", min=0, max=1, help="Only tokens that share this probability.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="The same seed writes the same text.")]

commands = typer.Typer()
tokenizers = typer.Typer(no_args_is_help=True, help="Train a tokenizer, or see what one makes of text.")
commands.add_typer(tokenizers, name="tokenizer")


@commands.command()
def sample(
    run: RunFolder,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Text to go on from.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to write.")] = 200,
    temperature: Temperature = 0.6,
    top_k: TopK = 50,
    top_p: TopP = 0.95,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")] = None,
    logprobs: Annotated[
        int | None, typer.Option("--logprobs", min=0, help="With --json: each token's log-probability, and likeliest.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each prompt, once all are done.")] = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Write text with a trained model, as it comes."""
    asked: dict[str, Any] = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    given = prompts or [""]
    where = folder(run, url, context)
    if where is None:
        if len(given) > 1 or stop or json or logprobs is not None:
            sentence = "several prompts, --stop, --json and --logprobs need the run's folder on this machine"
            raise CliError(sentence, Code.BAD_INPUT, next=f"teragpt pull {shlex.quote(run)} DIR")
        with connect(url, context) as client:
            remote.sample(client, run, prompt=given[0], **asked)
        return
    with trainer("sample"):
        from teragpt.inference.generate import Sampling
        from teragpt.inference.sample import Sampler, told

        how = Sampling(**asked, stop=tuple(stop or ()), logprobs=logprobs)
        sampler = Sampler(where)
        if len(given) == 1 and not json:
            show(given[0], (piece.text for piece in sampler.stream(given, how)))
            return
        for prompt, made in zip(given, sampler.complete(given, how), strict=True):
            print(told(prompt, made, sampler.tokenizer) if json else f"{prompt}{made.text}\n")


def show(prompt: str, text: Iterator[str]) -> None:
    """Write a prompt and what follows, as it comes; what is wrong is said before anything is written."""
    first = next(text, "")
    for piece in chain((prompt, first), text):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@commands.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Write a model for transformers to open."""
    where = folder(run, url, context)
    if where is None:
        with connect(url, context) as client:
            remote.fetch(client, run, "export", out)
    else:
        with trainer("export"):
            from teragpt.exchange.export import export as write

            write(where, out)
    output.json({"folder": str(out)}) if json else print(out)


@commands.command("import")
def import_model(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a Qwen3ForCausalLM, as transformers saves it.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Run folder to make.")],
    json: Json = False,
) -> None:
    """Make a run folder of a model of transformers, to train on from it."""
    with trainer("import"):
        from teragpt.exchange.importing import import_model as read

        read(model, out)
    if json:
        output.json({"folder": str(out), "config": f"{out}/model.json"})
        return
    print(out)
    where = shlex.quote(str(out))
    print(f"next: python -m teragpt.train --config {where}/model.json --start-from {where} --data DATASET --out DIR")


@commands.command()
def pull(
    run: RunName,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Copy a run's folder, with its newest checkpoint, from the cluster to this machine."""
    with connect(url, context) as client:
        remote.fetch(client, run, "pull", out)
    output.json({"folder": str(out)}) if json else print(f"next: teragpt sample {shlex.quote(str(out))}")


@commands.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Files, folders, patterns, URLs, a hub's names; - is stdin."),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The dataset's folder or URL, which must not exist yet.")],
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="A hub's name, a folder or a tokenizer.json.")],
    config: Annotated[
        str, typer.Option("--config", help="Of a hub's dataset; its card's usual one unless given.")
    ] = "",
    split: Annotated[str, typer.Option("--split", help="Of a hub's dataset; train unless given.")] = "",
    validation: Annotated[
        float, typer.Option("--validation", min=0, max=1, help="Share of documents that is held out.")
    ] = 0.01,
    format: Annotated[
        str, typer.Option("--format", help="text, jsonl, parquet or arrow; auto: by each file's name.")
    ] = "auto",
    column: Annotated[str, typer.Option("--column", help="The column that holds the text.")] = "text",
    template: Annotated[str, typer.Option("--template", help="Text over several columns: '{title}\\n{body}'.")] = "",
    chat: Annotated[
        str, typer.Option("--chat", help="The column that holds conversations, for the tokenizer's chat template.")
    ] = "",
    min_chars: Annotated[int, typer.Option("--min-chars", min=0, help="Drop shorter documents.")] = 0,
    max_chars: Annotated[int, typer.Option("--max-chars", min=0, help="Drop longer documents; 0: none.")] = 0,
    max_repeated: Annotated[
        float, typer.Option("--max-repeated", min=0, max=1, help="Drop documents with more in repeated lines; 0: none.")
    ] = 0,
    min_letters: Annotated[
        float, typer.Option("--min-letters", min=0, max=1, help="Drop documents with fewer letters and digits.")
    ] = 0,
    exact_duplicates: Annotated[
        str, typer.Option("--exact-duplicates", help="keep, or drop all but the first.")
    ] = "keep",
    near_duplicates: Annotated[
        float, typer.Option("--near-duplicates", min=0, max=1, help="Drop documents this similar to an earlier one.")
    ] = 0,
    bad_input: Annotated[str, typer.Option("--bad-input", help="fail, or skip and count.")] = "fail",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0: one a core, two on a cluster.")] = 0,
    on_cluster: Annotated[
        bool, typer.Option("--on-cluster", help="In a pod, where text and dataset lie; pvc:// says it.")
    ] = False,
    memory: Annotated[
        int | None, typer.Option("--memory", min=1 << 20, help="On a cluster: bytes of the pod's memory.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="On a cluster: what to call the run.")] = None,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Turn text into a dataset, on all cores."""
    recipe_of: dict[str, Any] = {
        "validation": validation,
        "format": format,
        "column": column,
        "template": template.replace("\\n", "\n").replace("\\t", "\t"),
        "chat": chat,
        "min_chars": min_chars,
        "max_chars": max_chars,
        "max_repeated": max_repeated,
        "min_letters": min_letters,
        "exact_duplicates": exact_duplicates,
        "near_duplicates": near_duplicates,
        "bad_input": bad_input,
    }
    if on_cluster or any(one.startswith("pvc://") for one in (*sources, out, tokenizer)):
        if only := some({"--config": config or None, "--split": split or None}):
            told = f"{', '.join(only)}: allowed: on this machine; on a cluster, name files: hf://datasets/NAME/FILES"
            raise CliError(told, Code.BAD_INPUT)
        share = {"cpus_per_node": workers or None, "memory_per_node": memory}
        compute = {field: value for field, value in share.items() if value}
        asked = {"sources": sources, "out": out, "tokenizer": tokenizer, "compute": compute, **recipe_of}
        with connect(url, context) as client:
            remote.prepare(client, {**asked, **({"name": name} if name else {})}, as_json=json)
        return
    with trainer("prepare"):
        from teragpt.prepare import Recipe, read_report, summary
        from teragpt.prepare import prepare as make
        from teragpt.tokenization.tokenizer import Tokenizer

        made = Recipe(**recipe_of)
        make(sources, out, Tokenizer(tokenizer), made, config=config, split=split, workers=workers)
        if json:
            output.json({"folder": out, **read_report(out)})
            return
        for line in summary(out):
            print(line)
    print(f"next: teragpt run SIZE --data {shlex.quote(out)}")


Texts = Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, patterns, URLs; - is stdin.")]
Format = Annotated[str, typer.Option("--format", help="text, jsonl, parquet or arrow; auto: by each file's name.")]
Column = Annotated[str, typer.Option("--column", help="The column that holds the text.")]


@tokenizers.command("train")
def train_tokenizer(
    sources: Texts,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    vocabulary: Annotated[int, typer.Option("--vocabulary", help="Entries, the bytes and special tokens included.")],
    special: Annotated[
        list[str] | None, typer.Option("--special", help="A token that no text becomes; may be repeated.")
    ] = None,
    format: Format = "auto",
    column: Column = "text",
    json: Json = False,
) -> None:
    """Train a byte-level BPE on text."""
    with trainer("tokenizer"):
        from teragpt.prepare import Recipe
        from teragpt.prepare.tokenizer_training import train_tokenizer as train

        made = train(sources, out, vocabulary, Recipe(format=format, column=column), special or ())
    if json:
        output.json({"folder": str(out), "entries": made.vocabulary, "fingerprint": made.fingerprint})
        return
    print(f"{made.vocabulary:,} entries, fingerprint {made.fingerprint}")
    print(f"next: teragpt prepare SOURCE --tokenizer {shlex.quote(str(out))} --out DIR")


@tokenizers.command("inspect")
def inspect_tokenizer(
    tokenizer: Annotated[str, typer.Argument(help="A hub's name, a folder or a tokenizer.json.")],
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE...", help="Text to measure it on, by the kind of its files.")
    ] = None,
    format: Format = "auto",
    column: Column = "text",
    json: Json = False,
) -> None:
    """Show a tokenizer, its bytes a token and the entries that text leaves unused."""
    with trainer("tokenizer"):
        from teragpt.prepare import Recipe
        from teragpt.prepare.tokenizer_training import inspect
        from teragpt.tokenization.tokenizer import Tokenizer

        found = inspect(Tokenizer(tokenizer), sources or [], Recipe(format=format, column=column))
        if json:
            output.json(asdict(found))
            return
        for line in found.lines():
            print(line)


def folder(run: str, url: str | None, context: str | None) -> Path | str | None:
    """Where a trained model lies: a folder or an object store's URL, given, or found by a run's id or name.

    None where that cannot be reached from this machine. Raises CliError where it holds no checkpoint yet.
    """
    if "://" in run:
        return run
    if Path(run, "config.json").is_file():
        if last_checkpoint(Path(run)) is None:
            raise CliError(f"{run} holds no checkpoint yet", next=f"teragpt sample {shlex.quote(run)} once it does")
        return Path(run)
    if "/" in run and Path(run).is_dir():
        raise CliError(f"{run} is no run folder: it holds no config.json", Code.BAD_INPUT, next="teragpt runs")
    with connect(url, context) as client:
        found = find(client, run)
    if "://" in found["folder"] and not found["folder"].startswith("pvc://"):
        return found["folder"] if reached(found["folder"]) else None
    where = Path(found["folder"])
    if found["checkpoint_step"] is not None and not where.is_dir():
        return None
    if last_checkpoint(where) is None:
        progress, why = found["progress"], found["message"] or found["reason"]
        at = f" at step {progress['step']:,} of {progress['steps']:,}" if progress else ""
        now = f"it {'' if found['phase'] in ENDED else 'is '}{found['phase']}{at}{f' ({why})' if why else ''}"
        sentence = f"run {found['id']} has no checkpoint{'' if found['phase'] in ENDED else ' yet'}: {now}"
        raise CliError(" ".join(sentence.split()), next=f"teragpt show {called(found)}")
    return where


def reached(url: str) -> bool:
    """Whether a run in an object store can be read from here: its library and its credentials may be a pod's alone."""
    from teragpt.config import ConfigError
    from teragpt.storage import folder_at

    try:
        return bool(folder_at(url, "run").entries())
    except (ConfigError, OSError):
        return False


@contextmanager
def trainer(command: str) -> Generator[None]:
    """Around the trainer's code: a library that is not installed is an error that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_extra(command, "train", error) from None
