"""Tokens for a control plane that knows their digests alone (`--auth tokens`). None is asked, and nothing is kept."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

import typer

from controlplane.cli import output
from controlplane.cli.errors import CliError, Code
from controlplane.cli.options import Json

LONGEST_NAME = 253

commands = typer.Typer()


@commands.command()
def token(
    name: Annotated[str, typer.Argument(help="Who is to show it; runs and changes then bear this name.")],
    json: Json = False,
) -> None:
    """Make a token, and the line by which a control plane with --auth tokens knows it. It is kept nowhere."""
    if not (name.isascii() and name.isprintable()) or " " in name or not 0 < len(name) <= LONGEST_NAME:
        allowed = f"1 to {LONGEST_NAME} letters, digits and signs of ASCII"
        raise CliError(f"NAME: got {name!r}; allowed: {allowed}", Code.BAD_INPUT)
    made = secrets.token_urlsafe(32)
    line = f"{name} sha256:{hashlib.sha256(made.encode()).hexdigest()}"
    if json:
        output.json({"token": made, "line": line})
        return
    print(f"token: {made}\nline:  {line}")
