"""`teragpt logs`: what ranks printed, shown, followed or searched."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.errors import CliError, Code
from controlplane.cli.moments import moment
from controlplane.cli.options import Context, Json, RunName, Url
from controlplane.cli.runs import find, some

commands = typer.Typer()


@commands.command()
def logs(
    run: RunName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print lines as they come until the run ends.")
    ] = False,
    rank: Annotated[int | None, typer.Option("--rank", min=0, help="Whose lines; those of rank 0 else.")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Of which attempt; the newest else.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", min=0, help="Only the last lines.")] = None,
    search: Annotated[
        str | None, typer.Option("--search", help="Only lines with this text, of all ranks and attempts else.")
    ] = None,
    grep: Annotated[
        str | None, typer.Option("--grep", help="As --search, with a regular expression of RE2's syntax.")
    ] = None,
    ignore_case: Annotated[
        bool, typer.Option("--ignore-case", "-i", help="With --search or --grep: find letters in either case.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option("--since", help="Only lines of this moment or later: a date, a time, or how long ago: 2h."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Only lines of before it.")] = None,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Print what a rank of a run printed, or find a text in what all of them did."""
    asked = some({"--search": search, "--grep": grep, "--since": since, "--until": until})
    if asked and (follow or tail is not None):
        raise CliError(f"{next(iter(asked))} goes without {'--follow' if follow else '--tail'}", Code.BAD_INPUT)
    if search is not None and grep is not None:
        raise CliError("--grep goes without --search", Code.BAD_INPUT)
    if ignore_case and search is None and grep is None:
        raise CliError("--ignore-case goes with --search or --grep alone", Code.BAD_INPUT)
    begun, ended = moment("--since", since), moment("--until", until)
    with connect(url, context) as client:
        found = find(client, run)
        if asked:
            text = search if search is not None else "^" if grep is None else grep
            regex = search is None
            for match in client.search_logs(
                found["id"],
                text,
                rank=rank,
                attempt=attempt,
                ignore_case=ignore_case,
                regex=regex,
                since=begun,
                until=ended,
            ):
                place = f"attempt {match['attempt']} rank {match['rank']} line {match['line']}"
                output.line(match) if json else print(f"{place}: {match['text']}")
            return
        if follow:
            for line in client.stream_log_lines(found["id"], rank=rank or 0, attempt=attempt, tail=tail):
                output.line(line) if json else print(line["text"], flush=True)
            return
        number = attempt or found["attempt"] or None
        written = client.logs(found["id"], rank=rank or 0, attempt=number, tail=tail)
        if json:
            for each in written.split("\n")[:-1]:
                output.line({"attempt": number, "rank": rank or 0, "text": each})
        else:
            sys.stdout.write(written)
