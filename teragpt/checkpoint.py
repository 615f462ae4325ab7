"""Checkpoints that are complete or absent: written in the background, resharded on load, fenced by their owner.

A checkpoint is a folder `step-N-attempt-A` of torch's distributed checkpoint format. It counts once `meta.json` lies in
it, which rank 0 writes last, when every rank's part is on disk. `owner-A.json` names each attempt that has claimed the
run folder and the step that it resumed from: a rank 0 that finds a later one stops, and what an attempt publishes past
the step that a later one resumed from is ignored.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from teragpt.config import Config, ConfigError, Problem

META = "meta.json"
SHAPE = ("dim", "depth", "heads", "kv_heads", "ffn", "num_tokens", "tied")
FENCE_SECONDS = 1.0  # how often rank 0 looks for a later attempt


class SaveFailed(OSError):
    """A checkpoint could not be written, on any rank; the one before it still counts."""


class Superseded(Exception):
    """A later attempt has claimed the run folder; this one must not write to it again."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its folder and what its `meta.json` says."""

    folder: Path
    step: int
    attempt: int
    meta: dict[str, Any]

    def verify(self, config: Config, data: str = "") -> None:
        """Raise ConfigError when it is of another shape or other data than the run, or a file is missing or cut."""
        theirs = self.meta["config"]
        problems = [
            Problem(name, getattr(config, name), f"{theirs[name]!r}, as in the checkpoint {self.folder}")
            for name in SHAPE
            if theirs[name] != getattr(config, name)
        ]
        if data and self.meta["data"] != data:
            problems.append(Problem("data", config.data or "the embedded corpus", f"the data of {self.folder}"))
        for name, size in self.meta["files"].items():
            path = self.folder / name
            found = path.stat().st_size if path.exists() else None
            if found != size:
                given = "missing" if found is None else f"{found} bytes"
                problems.append(Problem("checkpoint", f"{path}: {given}", f"the {size} bytes it was published with"))
        if problems:
            raise ConfigError(problems)


def published(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run folder that count, oldest first."""
    owners = [read_json(path) for path in (folder / "checkpoints").glob("owner-*.json")]
    found = []
    for path in (folder / "checkpoints").glob(f"step-*-attempt-*/{META}"):
        meta = read_json(path)
        later = [owner for owner in owners if owner["attempt"] > meta["attempt"]]
        if all(meta["step"] <= owner["resumed_from"] for owner in later):
            found.append(Checkpoint(path.parent, meta["step"], meta["attempt"], meta))
    return sorted(found, key=lambda one: (one.step, one.attempt))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that was written atomically. Raises ConfigError when it cannot be read all the same."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("checkpoint", str(path), f"a readable JSON file ({error})")]) from None
    return dict(value)


def write_durably(path: Path, value: Mapping[str, object]) -> None:
    """Write JSON so that the file is absent or whole, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


class Checkpoints:
    """The checkpoints of one attempt of a run. Every rank makes one, and calls its methods at the same steps."""

    def __init__(self, config: Config, data: str, attempt: int | None) -> None:
        """Claim the run folder for `attempt` (the next free one unless given); `start` is what to resume from.

        `data` is the dataset's fingerprint: a run goes on only with the data that it began with.

        Raises ConfigError for a folder that cannot be written, and Superseded when a later attempt owns it.
        """
        self.config, self.data, self.folder = config, data, Path(config.out) / "checkpoints"
        self.leader = dist.get_rank() == 0
        self.group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.saving: Future[None] | None = None
        self.looked = 0.0
        claimed: list[Any] = [None]
        if self.leader:
            try:
                claimed = [self.claim(attempt)]
            except (ConfigError, Superseded) as error:
                claimed = [error]
        dist.broadcast_object_list(claimed, src=0, group=self.group)
        if isinstance(claimed[0], Exception):
            raise claimed[0]
        self.attempt: int = claimed[0][0]
        self.start: Checkpoint | None = claimed[0][1]

    def claim(self, attempt: int | None) -> tuple[int, Checkpoint | None]:
        """Write the owner file of the attempt; returns it with the checkpoint that it resumes from."""
        number = attempt or 0
        try:
            known = sorted(int(path.stem.split("-")[1]) for path in self.folder.glob("owner-*.json"))
            number = number or (known[-1] + 1 if known else 1)
            if known and known[-1] >= number:
                raise Superseded(f"attempt {number} cannot claim {self.folder}: attempt {known[-1]} has")
            found = published(self.folder.parent)
            if not found and self.config.start_from:
                found = published(Path(self.config.start_from))
                if not found:
                    raise ConfigError([Problem("start_from", self.config.start_from, "a run folder with a checkpoint")])
            start = found[-1] if found else None
            if start is not None:
                start.verify(self.config, self.data)
            owner = {
                "attempt": number,
                "resumed_from": start.step if start else 0,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "time": time.time(),
            }
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f".owner-{number}.{os.getpid()}"
            write_durably(temporary, owner)
            os.link(temporary, self.folder / f"owner-{number}.json")  # fails where the file exists: one owner a number
            temporary.unlink()
        except FileExistsError:
            raise Superseded(f"attempt {number} of {self.folder} was claimed by another process") from None
        except OSError as error:
            allowed = f"a folder that can be written ({error.strerror})"
            raise ConfigError([Problem("out", self.config.out, allowed)]) from None
        return number, start

    def superseded(self) -> bool:
        """Whether a later attempt owns the run folder; looked up once a second, on rank 0 alone."""
        if not self.leader or time.monotonic() - self.looked < FENCE_SECONDS:
            return False
        self.looked = time.monotonic()
        return any(int(path.stem.split("-")[1]) > self.attempt for path in self.folder.glob("owner-*.json"))

    def load(self, checkpoint: Checkpoint, state: dict[str, Tensor]) -> None:
        """Read a checkpoint into the tensors of `state`, which may be sharded over any mesh."""
        load(state, checkpoint_id=str(checkpoint.folder), process_group=self.group)

    def save(
        self, step: int, state: dict[str, Tensor], meta: Mapping[str, object], then: Callable[[int], None]
    ) -> None:
        """Stage the state in memory and write it in the background. An earlier save is waited for first.

        Once it is published, rank 0 calls `then(step)` in that background.
        """
        self.wait()
        folder = self.folder / f"step-{step:08d}-attempt-{self.attempt}"
        whole = {
            "step": step,
            "attempt": self.attempt,
            "data": self.data,
            "torch": torch.__version__,
            "config": asdict(self.config),
            **meta,
        }
        written = async_save(state, checkpoint_id=str(folder), process_group=self.group)
        self.saving = self.pool.submit(self.publish, written, folder, whole, then)

    def publish(self, written: Any, folder: Path, meta: dict[str, Any], then: Callable[[int], None]) -> None:
        """Once every rank's part is written: the marker, on rank 0, and then the retention of older ones."""
        try:
            written.result()
        except CheckpointException as error:  # a BaseException, which holds each failing rank's own
            raise SaveFailed(f"{folder}: {next(iter(error.failures.values()))[0]}") from None
        if not self.leader:
            return
        self.looked = 0.0
        if self.superseded():
            raise Superseded(f"attempt {self.attempt} lost {self.folder} to a later attempt")
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        write_durably(folder / META, {**meta, "files": files, "time": time.time()})
        then(meta["step"])
        for old in self.expired():
            (old / META).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)

    def expired(self) -> Iterator[Path]:
        """Folders to remove after a publication: beyond the retention, torn, or of an attempt that lost the run."""
        found = published(self.folder.parent)
        every = self.config.keep_every
        kept = {one.folder for one in found[-self.config.keep_last :]}
        kept |= {one.folder for one in found if every and one.step % every == 0}
        return (path for path in self.folder.glob("step-*-attempt-*/") if path not in kept)

    def wait(self) -> None:
        """Wait for the save in flight. Raises SaveFailed, OSError or Superseded when it was not published."""
        saving, self.saving = self.saving, None
        if saving is not None:
            saving.result()

    def latest(self) -> Checkpoint | None:
        """The newest published checkpoint, the same one on every rank."""
        self.wait()
        found = published(self.folder.parent) if self.leader else []
        newest: list[Checkpoint | None] = [found[-1] if found else None]
        dist.broadcast_object_list(newest, src=0, group=self.group)
        return newest[0]

    def finish(self) -> None:
        """Leave together, after the last publication: v1 of the training operator ends a job when its master exits."""
        self.wait()
        dist.barrier(group=self.group)
        self.pool.shutdown()
