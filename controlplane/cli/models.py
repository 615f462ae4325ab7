"""Commands that put a trained model to use for others: `serve`, `chat`, `eval`; all of it is the trainer's own code."""

from __future__ import annotations

import ipaddress
import json as jsons
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.cli.errors import CliError, Code, missing_extra
from controlplane.cli.options import Context, Json, RunFolder, Url
from controlplane.cli.trainer import Seed, Temperature, TopK, TopP, folder, trainer

KEY = "TERAGPT_SERVE_KEY"
commands = typer.Typer()
Template = Annotated[Path | None, typer.Option("--chat-template", help="A Jinja file, for a tokenizer without one.")]


@commands.command()
def serve(
    run: RunFolder,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: one that is free.")] = 8001,
    name: Annotated[str, typer.Option("--name", help="What the model is called; RUN unless given.")] = "",
    chat_template: Template = None,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Serve a model as OpenAI's clients speak: /v1/completions, /v1/chat/completions, /v1/models."""
    key = os.environ.get(KEY) or None
    if key is None and not loopback(host):
        sentence = f"--host {host} lets others in: set {KEY} to the key that they have to bring"
        raise CliError(sentence, Code.BAD_INPUT, next=f"{KEY}=... teragpt serve {shlex.quote(run)} --host {host}")
    where = here(run, url, context)
    with trainer("serve"):
        from teragpt.inference.sample import Sampler
    try:
        from teragpt.inference.serve import Served
        from teragpt.inference.serve import serve as start
    except ModuleNotFoundError as error:
        raise missing_extra("serve", "serve", error) from None
    named = name or Path(run).name
    start(Served(Sampler(where), named, text_of(chat_template), key), host, port, as_json=json)


@commands.command()
def chat(
    run: RunFolder,
    system: Annotated[str, typer.Option("--system", help="What the model is told first.")] = "",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of a reply.")] = 500,
    temperature: Temperature = 0.6,
    top_k: TopK = 50,
    top_p: TopP = 0.95,
    seed: Seed = None,
    chat_template: Template = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each reply.")] = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Talk with a model, a line at a time."""
    where = here(run, url, context)
    with trainer("chat"):
        from teragpt.inference.chat import chat as talk
        from teragpt.inference.generate import Sampling
        from teragpt.inference.sample import Sampler

        sampling = Sampling(tokens, temperature, top_k, top_p, seed)
        talk(Sampler(where), sampling, system, text_of(chat_template), as_json=json)


@commands.command("eval")
def evaluate(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids, names or run folders, to be compared.")],
    data: Annotated[str, typer.Option("--data", help="A dataset or mixture; the run's own unless given.")] = "",
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="Held-out windows of each source.")] = 1024,
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks of lm-evaluation-harness instead, NAME,NAME.")] = "",
    task_folder: Annotated[Path | None, typer.Option("--task-folder", help="YAML files of tasks of your own.")] = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each run.")] = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Measure held-out loss and bits per byte of each source, or what tasks ask, and keep it with the run."""
    places = [here(run, url, context) for run in runs]
    with trainer("eval"):
        from teragpt.exchange.harness import measure_tasks, task_table
        from teragpt.inference.evaluate import evaluate as measure
        from teragpt.inference.evaluate import table

        def measured(where: Path | str) -> dict[str, Any]:
            return measure_tasks(where, tasks.split(","), task_folder) if tasks else measure(where, data, sequences)

        found = [(run, measured(where)) for run, where in zip(runs, places, strict=True)]
        shown = task_table(found) if tasks else table(found)
        for line in (jsons.dumps({"run": run, **one}) for run, one in found) if json else shown:
            print(line)


def here(run: str, url: str | None, context: str | None) -> Path | str:
    """A run's folder, which has to be on this machine or in an object store. Raises CliError."""
    where = folder(run, url, context)
    if where is None:
        raise CliError(f"the folder of {run} is not on this machine", next=f"teragpt pull {shlex.quote(run)} DIR")
    return where


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def text_of(path: Path | None) -> str | None:
    """A file's text. Raises CliError that names it."""
    try:
        return path.read_text("utf-8") if path else None
    except (OSError, ValueError) as error:
        raise CliError(f"{path} cannot be read ({error})", Code.BAD_INPUT) from None
