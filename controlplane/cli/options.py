"""Options that several commands share, each described once."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Url: TypeAlias = Annotated[
    str | None, typer.Option("--url", help="The control plane's address; TERAGPT_URL unless given.")
]
Context: TypeAlias = Annotated[
    str | None, typer.Option("--context", help="A context of `teragpt context`; TERAGPT_CONTEXT unless given.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
All: TypeAlias = Annotated[bool, typer.Option("--all", help="Every setting too.")]
RunName: TypeAlias = Annotated[str, typer.Argument(metavar="RUN", help="A run's id or name.")]
RunFolder: TypeAlias = Annotated[str, typer.Argument(metavar="RUN", help="A run's id or name, or a run folder.")]
Follow: TypeAlias = Annotated[bool, typer.Option("--follow", "-f", help="Stay until the run has ended.")]
