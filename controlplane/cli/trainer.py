"""Commands that run the trainer's own code here: `sample`, `export`, `prepare`. They alone need the [train] extra."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.contexts import connect
from controlplane.cli.errors import CliError, Code, missing_extra
from controlplane.cli.options import Context, RunFolder, Url
from controlplane.cli.runs import find

commands = typer.Typer()


@commands.command()
def sample(
    run: RunFolder,
    prompt: Annotated[str, typer.Argument(help="Text to go on from.")] = "",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 takes the likeliest token.")] = 0.6,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Only the k likeliest tokens; 0: all.")] = 50,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0, max=1, help="Only tokens that share this probability.")
    ] = 0.95,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The same seed writes the same text.")] = None,
    url: Url = None,
    context: Context = None,
) -> None:
    """Write text with a trained model, as it comes."""
    where = folder(run, url, context)
    with trainer("sample"):
        from teragpt.sample import stream

        sys.stdout.write(prompt)
        for piece in stream(where, prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")


@commands.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    url: Url = None,
    context: Context = None,
) -> None:
    """Write a model for transformers to open."""
    where = folder(run, url, context)
    with trainer("export"):
        from teragpt.export import export as write

        print(write(where, out))


@commands.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def prepare(context: typer.Context) -> None:
    """Turn text files and folders into a dataset."""
    with trainer("prepare"):
        from teragpt.prepare import main

        raise typer.Exit(main(context.args))


def folder(run: str, url: str | None, context: str | None) -> Path:
    """The folder of a run on this machine: a path that exists, or what the control plane says of an id or a name."""
    if Path(run, "config.json").is_file():
        return Path(run)
    with connect(url, context) as client:
        found = find(client, run)
    where = Path(found["folder"])
    if not where.is_dir():
        raise CliError(
            f"the folder of run {found['id']}, {where}, is not on this machine",
            Code.NOT_FOUND,
            next="it where the run's folder is",
        )
    return where


@contextmanager
def trainer(command: str) -> Generator[None]:
    """Around the trainer's code: a library that is not installed is an error that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_extra(command, "train", error) from None
