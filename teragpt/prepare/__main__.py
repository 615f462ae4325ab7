"""`python -m teragpt.prepare SOURCES -o OUT --tokenizer NAME`, for where the CLI is not installed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields

if __name__ == "__main__" and "TERAGPT_RUN_ID" in os.environ:  # who waits for a pod's first line can tell that it began
    print("prepare: begun", file=sys.stderr, flush=True)

from teragpt.config import ConfigError
from teragpt.prepare.assembly import Busy, published_by
from teragpt.prepare.documents import Recipe
from teragpt.prepare.preparation import prepare
from teragpt.prepare.report import summary
from teragpt.tokenization.tokenizer import Tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a dataset: 0, 2 for input that cannot be used, or 1 while another process prepares the same one."""
    parser = argparse.ArgumentParser("python -m teragpt.prepare", description="Turn text into a dataset.")
    parser.add_argument("sources", nargs="+", help="files, folders, glob patterns, URLs, names at the hub, - for stdin")
    parser.add_argument("-o", "--out", required=True, help="the dataset's folder or URL, which must not exist yet")
    parser.add_argument("--tokenizer", required=True, help="hub name, local folder or tokenizer file")
    parser.add_argument("--workers", type=int, default=0, help="processes; one a core unless given")
    parser.add_argument("--config", default="", help="of a dataset at the hub; its card's usual one unless given")
    parser.add_argument("--split", default="", help="of a dataset at the hub; train unless given")
    for one in fields(Recipe):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default)
    given = parser.parse_args(arguments)
    run = os.environ.get("TERAGPT_RUN_ID", "")
    try:
        recipe = Recipe(**{one.name: getattr(given, one.name) for one in fields(Recipe)})
        named = {"config": given.config, "split": given.split, "workers": given.workers}
        prepare(given.sources, given.out, Tokenizer(given.tokenizer), recipe, run=run, **named)
    except ConfigError as error:
        if not published_by(run, given.out):
            print(f"error: {error}", file=sys.stderr)
            return 1 if isinstance(error, Busy) else 2
        print("an earlier attempt of this run has published the dataset", file=sys.stderr)
    for line in summary(given.out):
        print(line)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which the first process of a pod ignores
    sys.exit(main())
