"""The command `teragpt`: the control plane's client for people, and the door to the trainer's own commands.

It knows the HTTP client and how to print; no store, no cluster, no torch. Only `up` starts the control plane, and only
`sample`, `export` and `prepare` import the trainer, when they run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line on stderr (see `controlplane.cli.errors`)."""
    from controlplane.cli.app import app
    from controlplane.cli.errors import from_client, from_usage, is_help

    try:
        ended = app(args=arguments, prog_name="teragpt", standalone_mode=False)
        return ended if isinstance(ended, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if is_help(error):
            print(error, file=sys.stderr)
            return 2
        told = from_client(error) or from_usage(error, sys.argv[1:] if arguments is None else arguments)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return told.code
