"""What is done with a trained run where its folder is, for a caller who cannot see it: sample, export, pull.

The control plane starts this in a pod of its own: `python -m teragpt.task sample FOLDER PROMPT ...`. A sample is what
the pod prints; files go back to the control plane as a tar archive, under the pod's own token.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from teragpt.config import ConfigError, Problem
from teragpt.environment import read_report

CHUNK = 1 << 20
PATIENCE_S = 3600  # that the control plane may take for one chunk of a large model


def main(arguments: Sequence[str]) -> int:
    """Run one task. Exit code 0, or 2 with a sentence on stderr."""
    asked = parser().parse_args(arguments)
    try:
        if asked.task == "sample":
            sample(asked)
        elif asked.task == "export":
            with tempfile.TemporaryDirectory() as scratch:
                from teragpt.export import export

                deliver(export(asked.folder, Path(scratch) / "model"))
        else:
            deliver(Path(asked.folder), only=wanted(Path(asked.folder)))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The tasks and their arguments."""
    made = argparse.ArgumentParser(prog="python -m teragpt.task")
    tasks = made.add_subparsers(dest="task", required=True)
    write = tasks.add_parser("sample")
    for task in (write, tasks.add_parser("export"), tasks.add_parser("pull")):
        task.add_argument("folder")
    write.add_argument("prompt")
    for name, kind, usual in (
        ("tokens", int, 200),
        ("temperature", float, 0.6),
        ("top-k", int, 50),
        ("top-p", float, 0.95),
        ("seed", int, None),
    ):
        write.add_argument(f"--{name}", type=kind, default=usual)
    return made


def sample(asked: argparse.Namespace) -> None:
    """Print the prompt and what follows."""
    from teragpt.sample import stream

    numbers = {name: getattr(asked, name) for name in ("tokens", "temperature", "top_k", "top_p", "seed")}
    print(asked.prompt, end="")
    for piece in stream(asked.folder, asked.prompt, **numbers):
        print(piece, end="", flush=True)
    print()


def wanted(run: Path) -> list[Path]:
    """What makes a run folder whole elsewhere: its newest checkpoint and everything but the older ones."""
    from teragpt.storage import folder_at
    from teragpt.trained import newest

    last = Path(str(newest(folder_at(run, "run")).folder)).name
    return sorted(
        path
        for path in run.rglob("*")
        if path.is_file() and (path.parent.parent.name != "checkpoints" or path.parent.name == last)
    )


def deliver(folder: Path, only: Sequence[Path] | None = None) -> None:
    """Send the files of a folder to the control plane. Raises ConfigError where none is known, OSError."""
    report = read_report(os.environ)
    if report is None:
        raise ConfigError([Problem("TERAGPT_RUN_URL", None, "the control plane's, with a token beside it")])
    url, token = report
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if only is None else only
    headers = {"Authorization": f"Bearer {token()}", "Content-Type": "application/x-tar"}
    request = urllib.request.Request(f"{url}/output", archive(folder, files), headers, method="PUT")  # noqa: S310 - the control plane's own URL
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:  # noqa: S310 - the same
        reply.read()
    print(f"delivered {len(files)} files, {sum(path.stat().st_size for path in files):,} bytes", flush=True)


def archive(folder: Path, files: Sequence[Path]) -> Iterator[bytes]:
    """The files as a tar archive, in pieces, without a second copy of them anywhere."""
    read, write = os.pipe()

    def fill() -> None:
        with os.fdopen(write, "wb") as sink, tarfile.open(fileobj=sink, mode="w|") as tar:
            for path in files:
                tar.add(path, path.relative_to(folder))

    thread = threading.Thread(target=fill, name="archive", daemon=True)
    thread.start()
    with os.fdopen(read, "rb") as source:
        while piece := source.read(CHUNK):
            yield piece
    thread.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
