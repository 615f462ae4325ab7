"""Checkpoints that are complete or absent: written in the background, resharded on load, fenced by their owner.

A checkpoint is a folder `step-N-attempt-A` of torch's distributed checkpoint format. It counts once `meta.json` lies in
it, which rank 0 writes last, when every rank's part is on disk. `owner-A.json` names each attempt that has claimed the
run folder and the step that it resumed from: a rank 0 that finds a later one stops, and what an attempt publishes past
the step that a later one resumed from is ignored.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

from teragpt.compute.compatibility import fsspec_storage
from teragpt.config import TENSORS, Config, ConfigError, Problem, kept, resolve
from teragpt.mirror import Mirror
from teragpt.storage import Disk, Folder, folder_at

META = "meta.json"
OWNER, STEP = re.compile(r"owner-(\d+)\.json"), re.compile(r"step-\d+-attempt-\d+")
FULL = {errno.ENOSPC, errno.EDQUOT}


class SaveFailed(OSError):
    """A checkpoint could not be written, on any rank; the one before it still counts."""


class Superseded(Exception):
    """A later attempt has claimed the run folder; this one must not write to it again."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its folder and what its `meta.json` says."""

    folder: Folder
    step: int
    attempt: int
    meta: dict[str, Any]

    def verify(self, config: Config, data: str = "") -> None:
        """Raise ConfigError when it has other tensors or other data than the run, or a file is missing or cut."""
        theirs = vars(kept(self.meta["config"]))
        problems = [
            Problem(name, getattr(config, name), f"{theirs[name]!r}, as in the checkpoint {self.folder}")
            for name in TENSORS
            if theirs[name] != getattr(config, name)
        ]
        if data and self.meta["data"] != data:
            problems.append(Problem("data", config.data or "the embedded corpus", f"the data of {self.folder}"))
        there = self.folder.entries()
        for name, size in self.meta["files"].items():
            if there.get(name) != size:
                given = f"{self.folder}/{name}: " + (f"{there[name]} bytes" if name in there else "missing")
                problems.append(Problem("checkpoint", given, f"the {size} bytes it was published with"))
        if problems:
            raise ConfigError(problems)


def published(run: Folder) -> list[Checkpoint]:
    """The checkpoints of a run folder that count, oldest first."""
    folder = run / "checkpoints"
    names = folder.entries()
    owners = [owner for name in names if OWNER.fullmatch(name) and (owner := read_json(folder, name))]
    found = []
    for name in filter(STEP.fullmatch, names):
        meta = read_json(folder / name, META)
        if meta and all(meta["step"] <= one["resumed_from"] for one in owners if one["attempt"] > meta["attempt"]):
            found.append(Checkpoint(folder / name, meta["step"], meta["attempt"], meta))
    return sorted(found, key=lambda one: (one.step, one.attempt))


def start_of(place: Folder) -> list[Checkpoint]:
    """The checkpoint in a folder, or those of a run folder that count, oldest first."""
    meta = read_json(place, META)
    return [Checkpoint(place, meta["step"], meta["attempt"], meta)] if meta else published(place)


def beginnings(config: Config) -> tuple[list[Checkpoint], bool]:
    """The checkpoints that count of the run's own folder, else of `start_from`, oldest first; whether they are of that.

    Raises ConfigError and OSError.
    """
    found = published(folder_at(config.out, "out"))
    other = not found and bool(config.start_from)
    return (start_of(folder_at(config.start_from, "start_from")) if other else found), other


def as_begun(config: Config, given: Mapping[str, object], vocabulary: int) -> Config:
    """The configuration with the optimizer of the checkpoint that it goes on from, where none is `given`.

    So a run goes on as it was begun, also where its size had another default then. Every rank calls it; rank 0 looks.
    Raises ConfigError where that optimizer cannot be with what is given.
    """
    optimizer = [config.optimizer]
    if dist.get_rank() == 0 and "optimizer" not in given:
        with suppress(ConfigError, OSError):  # told when the folder is claimed
            found, _ = beginnings(config)
            optimizer = [one.meta["config"].get("optimizer", Config.optimizer) for one in found[-1:]] or optimizer
    dist.broadcast_object_list(optimizer)
    if optimizer[0] == config.optimizer:
        return config
    if dist.get_rank() == 0:
        print(f"optimizer {optimizer[0]}, as in the checkpoint that it goes on from", flush=True)
    return resolve({**given, "optimizer": optimizer[0]}, vocabulary)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[object]]:
    """What differs between two attempts, as they tell of themselves: settings, data, torch, ranks; before and now."""
    old, new = ({**about["config"], **{n: about.get(n) for n in ("data", "torch", "ranks")}} for about in (before, now))
    return {name: [old.get(name), value] for name, value in new.items() if old.get(name) != value}


def read_json(folder: Folder, name: str) -> dict[str, Any] | None:
    """A JSON object that was written in one piece; None where none is. Raises ConfigError when it cannot be read."""
    try:
        return dict(json.loads(folder.read(name)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("checkpoint", f"{folder}/{name}", f"a readable JSON file ({error})")]) from None


def as_json(value: Mapping[str, object]) -> bytes:
    """JSON for people and programs."""
    return json.dumps(value, indent=1).encode()


def reader(folder: Folder) -> StorageReader:
    """torch's own reader of a checkpoint's folder."""
    if isinstance(folder, Disk):
        return FileSystemReader(folder.path)
    in_store: StorageReader = fsspec_storage().FsspecReader(str(folder))
    return in_store


def writer(folder: Folder, *, apart: bool = False) -> StorageWriter:
    """torch's own writer; in a store a file is durable once it is closed, and nothing there can be synced.

    `apart`: each tensor in a file of its own, since torch holds all that goes into a file until that is closed.

    Copying ahead, it would wait for the GPU at each tensor, and so for a step, though the mirror has copied all.
    """
    torch.serialization.set_crc32_options(False)  # three quarters of a write's CPU time, and no reader looks at them
    if isinstance(folder, Disk):
        return FileSystemWriter(folder.path, single_file_per_rank=not apart, per_thread_copy_ahead=0)
    in_store: StorageWriter = fsspec_storage().FsspecWriter(
        str(folder), single_file_per_rank=not apart, sync_files=False, per_thread_copy_ahead=0
    )
    return in_store


class Checkpoints:
    """The checkpoints of one attempt of a run. Every rank makes one, and calls its methods at the same steps."""

    def __init__(self, config: Config, data: str, attempt: int | None) -> None:
        """Claim the run folder for `attempt` (the next free one unless given); `start` is what to resume from.

        `data` is the dataset's fingerprint: a run goes on only with the data that it began with.

        Raises ConfigError for a folder that cannot be written, and Superseded when a later attempt owns it.
        """
        self.config, self.data, self.run = config, data, folder_at(config.out, "out")
        self.folder = self.run / "checkpoints"
        self.leader = dist.get_rank() == 0
        self.group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.saving: Future[None] | None = None
        self.mirror: Mirror | None = None
        self.watch = ThreadPoolExecutor(1, thread_name_prefix="fence")
        self.looking: Future[bool] | None = None
        self.looked, self.lost, self.claimed = 0.0, False, b""
        self.changes: dict[str, list[object]] = {}  # settings since the checkpoint that rank 0 found: before, now
        claimed: list[Any] = [None]
        if self.leader:
            try:
                claimed = [self.claim(attempt)]
            except (ConfigError, Superseded, SaveFailed) as error:
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
            known = max(self.owners(), default=0)
            number = number or known + 1
            if known >= number:
                raise Superseded(f"attempt {number} cannot claim {self.folder}: attempt {known} has")
            found, other = beginnings(self.config)
            if other and not found:
                allowed = "a run folder with a checkpoint, or a checkpoint's folder"
                raise ConfigError([Problem("start_from", self.config.start_from, allowed)])
            start = found[-1] if found else None
            if start is not None:
                start.verify(self.config, "" if other else self.data)  # a run of its own may have data of its own
                self.changes = changes(start.meta, self.about())
            owner = {
                "attempt": number,
                "resumed_from": start.step if start else 0,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "time": time.time(),
                "changes": self.changes,
            }
            self.claimed = as_json(owner)
            self.folder.create(f"owner-{number}.json", self.claimed)
        except FileExistsError:
            raise Superseded(f"attempt {number} of {self.folder} was claimed by another process") from None
        except OSError as error:
            if error.errno in FULL:  # there may be room at the next try
                raise SaveFailed(error.errno, error.strerror, str(self.folder)) from None
            allowed = f"a folder that can be written ({error.strerror})"
            raise ConfigError([Problem("out", self.config.out, allowed)]) from None
        return number, start

    def about(self) -> dict[str, Any]:
        """What a checkpoint tells of the attempt that wrote it."""
        return {
            "data": self.data,
            "torch": str(torch.__version__),
            "ranks": dist.get_world_size(),
            "config": asdict(self.config),
        }

    def owners(self) -> list[int]:
        """The attempts that have claimed the run folder."""
        return [int(found[1]) for name in self.folder.entries() if (found := OWNER.fullmatch(name))]

    def superseded(self) -> bool:
        """Whether rank 0 saw that a later attempt owns the run folder. It looks now and then, beside training."""
        due = self.leader and time.monotonic() - self.looked >= self.folder.look_every
        if due and (self.looking is None or self.looking.done()):
            self.looked = time.monotonic()
            self.looking = self.watch.submit(self.look)
        return self.lost

    def look(self) -> bool:
        """Whether a later attempt owns the run folder, or another process this attempt. Raises OSError."""
        mine = f"owner-{self.attempt}.json"
        self.lost = self.lost or max(self.owners(), default=0) > self.attempt or self.folder.read(mine) != self.claimed
        return self.lost

    def load(self, checkpoint: Checkpoint, state: dict[str, Tensor]) -> None:
        """Read a checkpoint into the tensors of `state`, which may be sharded over any mesh."""
        load(state, storage_reader=reader(checkpoint.folder), process_group=self.group)

    def prepare(self, state: Mapping[str, Tensor]) -> None:
        """Have memory of the host ready for what will be saved of a GPU's."""
        self.mirror = Mirror(state)

    def save(
        self, step: int, state: dict[str, Tensor], meta: Mapping[str, object], then: Callable[[int], None]
    ) -> None:
        """Stage the state in memory and write it in the background. An earlier save is waited for first.

        Once it is published, rank 0 calls `then(step)` in that background.
        """
        self.wait()
        folder = self.folder / f"step-{step:08d}-attempt-{self.attempt}"
        whole = {"step": step, "attempt": self.attempt, **self.about(), **meta}
        written = async_save(state, storage_writer=writer(folder), process_group=self.group, async_stager=self.mirror)
        self.saving = self.pool.submit(self.publish, written, folder, whole, then)

    def publish(self, written: Any, folder: Folder, meta: dict[str, Any], then: Callable[[int], None]) -> None:
        """Once every rank's part is written: the marker, on rank 0, and then the retention of older ones."""
        try:
            written.result()
        except CheckpointException as error:  # a BaseException, which holds each failing rank's own
            raise SaveFailed(f"{folder}: {next(iter(error.failures.values()))[0]}") from None
        if not self.leader:
            return
        if self.look():
            raise Superseded(f"attempt {self.attempt} lost {self.folder} to another")
        files = dict(sorted(folder.entries().items()))
        folder.write(META, as_json({**meta, "files": files, "time": time.time()}))
        then(meta["step"])
        for old in self.expired():
            old.remove(META)

    def expired(self) -> list[Folder]:
        """Folders to remove after a publication: beyond the retention, torn, or of an attempt that lost the run."""
        found = published(self.run)
        every = self.config.keep_every
        kept = {one.folder for one in found[-self.config.keep_last :]}
        kept |= {one.folder for one in found if every and one.step % every == 0}
        folders = (self.folder / name for name, size in self.folder.entries().items() if size is None)
        return [folder for folder in folders if folder not in kept]

    def wait(self) -> None:
        """Wait for the save in flight. Raises SaveFailed, OSError or Superseded when it was not published."""
        saving, self.saving = self.saving, None
        if saving is not None:
            saving.result()

    def latest(self) -> Checkpoint | None:
        """The newest published checkpoint, the same one on every rank."""
        self.wait()
        found = published(self.run) if self.leader else []
        newest: list[Checkpoint | None] = [found[-1] if found else None]
        dist.broadcast_object_list(newest, src=0, group=self.group)
        return newest[0]

    def finish(self) -> None:
        """Leave together, after the last publication: v1 of the training operator ends a job when its master exits."""
        self.wait()
        dist.barrier(group=self.group)
        self.pool.shutdown()
        self.watch.shutdown()
