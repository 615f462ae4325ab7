"""What is done with a trained run where its folder is, for a caller who cannot see it: sample, export, pull, remove.

The control plane starts this in a pod of its own: `python -m teragpt.task sample FOLDER PROMPT ...`. A sample is what
the pod prints; files go back to the control plane as a tar archive, under the pod's own token.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from teragpt.config import ConfigError, Problem
from teragpt.launcher.environment import read_report
from teragpt.storage import Folder, folder_at

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
                from teragpt.exchange.export import export

                made = folder_at(export(asked.folder, Path(scratch) / "model"), "out")
                deliver(made, files(made))
        elif asked.task == "pull":
            run = folder_at(asked.folder, "run")
            deliver(run, wanted(run))
        else:
            remove(asked.folder, asked.run)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The tasks and their arguments."""
    made = argparse.ArgumentParser(prog="python -m teragpt.task")
    tasks = made.add_subparsers(dest="task", required=True)
    write = tasks.add_parser("sample")
    gone = tasks.add_parser("remove")
    for task in (write, tasks.add_parser("export"), tasks.add_parser("pull"), gone):
        task.add_argument("folder")
    gone.add_argument("run", help="the id of the run whose folder it is")
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
    from teragpt.inference.sample import stream

    numbers = {name: getattr(asked, name) for name in ("tokens", "temperature", "top_k", "top_p", "seed")}
    print(asked.prompt, end="")
    for piece in stream(asked.folder, asked.prompt, **numbers):
        print(piece, end="", flush=True)
    print()


def remove(place: str, run: str) -> None:
    """Remove a run's folder, there or not. Raises ConfigError where it is not named after the run, or stays."""
    if place.rstrip("/").rpartition("/")[2] != run:
        raise ConfigError([Problem("folder", place, f"the folder of run {run}, which bears its name")])
    folder = folder_at(place, "folder")
    try:
        folder.remove("owner-1.json")
        left = sorted(folder.entries())
    except OSError as error:
        raise ConfigError([Problem("folder", place, f"a folder that can be removed ({error})")]) from None
    if left:
        raise ConfigError([Problem("folder", place, f"a folder that can be removed: {', '.join(left)} stayed")])
    print(f"removed {place}", flush=True)


def files(folder: Folder, within: str = "") -> dict[str, int]:
    """Every file below a folder, by its path there, with its size in bytes; by name."""
    found: dict[str, int] = {}
    for name, size in sorted(folder.entries().items()):
        path = f"{within}{name}"
        found |= files(folder / name, f"{path}/") if size is None else {path: size}
    return found


def wanted(run: Folder) -> dict[str, int]:
    """What makes a run folder whole elsewhere: its newest checkpoint and everything but the older ones."""
    from teragpt.inference.trained import newest

    last = PurePosixPath(str(newest(run).folder)).name
    return {
        path: size
        for path, size in files(run).items()
        if PurePosixPath(path).parent.parent != PurePosixPath("checkpoints") or PurePosixPath(path).parent.name == last
    }


def deliver(folder: Folder, only: Mapping[str, int]) -> None:
    """Send files of a folder to the control plane. Raises ConfigError where none is known, OSError."""
    report = read_report(os.environ)
    if report is None:
        raise ConfigError([Problem("TERAGPT_RUN_URL", None, "the control plane's, with a token beside it")])
    url, token = report
    headers = {"Authorization": f"Bearer {token()}", "Content-Type": "application/x-tar"}
    request = urllib.request.Request(f"{url}/output", archive(folder, only), headers, method="PUT")  # noqa: S310 - the control plane's own URL
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:  # noqa: S310 - the same
        reply.read()
    print(f"delivered {len(only)} files, {sum(only.values()):,} bytes", flush=True)


def archive(folder: Folder, only: Mapping[str, int]) -> Iterator[bytes]:
    """The files as a tar archive, in pieces, without a second copy of them anywhere."""
    read, write = os.pipe()
    now = int(time.time())

    def fill() -> None:
        with os.fdopen(write, "wb") as sink, tarfile.open(fileobj=sink, mode="w|") as tar:
            for path, size in only.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mtime = size, now
                with folder.stream(path) as source:
                    tar.addfile(entry, source)

    thread = threading.Thread(target=fill, name="archive", daemon=True)
    thread.start()
    with os.fdopen(read, "rb") as source:
        while piece := source.read(CHUNK):
            yield piece
    thread.join()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which the first process of a pod ignores
    sys.exit(main(sys.argv[1:]))
