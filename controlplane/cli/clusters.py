"""`teragpt doctor`: what a cluster has, what it lacks, and how that is mended."""

from __future__ import annotations

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.errors import CliError
from controlplane.cli.options import Context, Json, Url

commands = typer.Typer()


@commands.command()
def doctor(json: Json = False, url: Url = None, context: Context = None) -> None:
    """Look at the cluster: what runs need of it, and how to mend what is lacking."""
    with connect(url, context) as client:
        found = client.clusters()
    if json:
        output.json(found)
    else:
        for cluster in found:
            kinds = ", ".join(f"{kind} ({why})" for kind, why in cluster["kinds"].items())
            output.details({"cluster": cluster["name"], "namespace": cluster["namespace"], "kinds": kinds})
            rows = [("ok" if one["ok"] else "LACKS", one["name"], one["detail"]) for one in cluster["checks"]]
            output.table(("", "check", "how it is"), rows)
    lacking = [one for cluster in found for one in cluster["checks"] if not one["ok"]]
    if lacking:
        raise CliError("; ".join(f"{one['name']}: {one['detail']}" for one in lacking), next=lacking[0]["mend"])
