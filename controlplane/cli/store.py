"""Commands on the store of a control plane that runs: `backup`, `vacuum`; `restore` stands by `up`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.errors import CliError, Code
from controlplane.cli.options import Context, Json, Url

SQLITE = b"SQLite format 3\0"

commands = typer.Typer()


@commands.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to make.")],
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Copy the store of a control plane to a file, while it runs."""
    if file.exists():
        raise CliError(f"{file} is there already: nothing is overwritten", Code.BAD_INPUT)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.touch(0o600, exist_ok=False)  # only its owner reads it: a store holds tokens
        with connect(url, context) as client, draft.open("wb") as copy:
            for piece in client.backup():
                copy.write(piece)
            copy.flush()
            os.fsync(copy.fileno())
        with draft.open("rb") as copied:
            if copied.read(len(SQLITE)) != SQLITE:
                raise CliError("what came is no database of SQLite, so that nothing is kept", next="teragpt doctor")
        os.link(draft, file)  # fails where it is there by now, as a rename does not
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)
    if json:
        output.json({"file": str(file), "bytes": file.stat().st_size})
        return
    print(f"{file}: {output.size(file.stat().st_size)}")
    print(f"next: teragpt restore {file} --home DIR")


@commands.command()
def vacuum(json: Json = False, url: Url = None, context: Context = None) -> None:
    """Give the store's unused space back to the file system."""
    with connect(url, context) as client:
        done = client.vacuum()
    if json:
        output.json(done)
    else:
        print(f"{output.size(done['bytes_before'])} before, {output.size(done['bytes_after'])} after")
