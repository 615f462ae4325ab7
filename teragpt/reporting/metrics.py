"""What a run reports: a readable line a step, `metrics.jsonl` as the record, its trackers, posts to the control plane.

Training never waits for the control plane: a thread posts what lies in the record, from the last line that was
acknowledged on, and tries again for as long as the run lives, whatever the answer was: a control plane may be away, or
not know a fresh pod yet. What is answered may ask for a checkpoint: pods can be reached by no other way.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import torch

from teragpt.config import Config
from teragpt.launcher.environment import TOKEN_FILE, read_report
from teragpt.reporting.sensors import Sensors
from teragpt.reporting.trackers import Trackers
from teragpt.storage import Log, folder_at

POST_EVERY = 2.0  # seconds between posts; twice as many after each that failed
LONGEST_EVERY = 5.0  # what the control plane may ask for in place of that, where many runs report to it
SLOWEST_POST = 30.0
LAST_EVERY = 0.5  # seconds between posts that fail once the run has ended
ASK_EVERY = 5.0  # seconds; a post without points asks what is wanted of the run
POST_POINTS = 500  # points of one post at most
LAST_POSTS = 30.0  # seconds that the end of a run waits for its last points to be acknowledged
LAST_POSTS_AWAY = 900.0  # the same where they can be had from nowhere else and the control plane does not answer
REMIND_EVERY = 60.0  # seconds; a rank that says nothing is taken for hung


def peak_flops() -> float | None:
    """Dense bf16 FLOP/s of this rank's device; None where it is not known, as on CPU."""
    if not torch.cuda.is_available():
        return None
    from teragpt.plan.hardware import known  # the planner, of which a rank needs nothing else

    found = known(torch.cuda.get_device_name())
    return found.bf16 if found else None


def memory_bytes() -> int:
    """The most memory that this rank has held: the device's on GPU, else the process's resident set.

    Linux' own high-water mark: `getrusage` would count what a parent held before it started this process.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def mfu_per_rate(config: Config, world_size: int) -> float | None:
    """Model FLOPs utilisation of a token a second over all ranks; None where the device's peak is not known."""
    peak = peak_flops()
    flops = config.shape.flops_per_token(config.num_tokens, config.context)
    return flops / (peak * world_size) if peak else None


class Metrics:
    """The report of one attempt; ranks other than 0 have one that keeps silent.

    `save` is called, in another thread, where the control plane asks for a checkpoint.
    """

    def __init__(
        self, config: Config, attempt: int, rank: int, world_size: int, parameters: int, save: Callable[[], None]
    ) -> None:
        self.config, self.attempt, self.world_size, self.leader = config, attempt, world_size, rank == 0
        self.seq, self.since, self.steps_since, self.started = 0, time.perf_counter(), 0, time.perf_counter()
        self.log: Log | None = None
        self.poster: Poster | None = None
        self.trackers: Trackers | None = None
        self.sensors: Sensors | None = None
        self.lock = threading.Lock()  # checkpoints are published in a thread of their own
        if not self.leader:
            return
        self.mfu_per_rate, self.sensors = mfu_per_rate(config, world_size), Sensors()
        folder = folder_at(config.out, "out")
        self.log = folder.log("metrics.jsonl", attempt)
        self.trackers = Trackers(config, folder, attempt, self.say)
        if report := read_report(os.environ):
            url, token = report
            self.poster = Poster(f"{url}/metrics", token, attempt, save)
        self.say(
            f"{parameters:,} parameters | {world_size} rank{'s' if world_size > 1 else ''} | {config.steps:,} steps of "
            f"{config.global_batch_tokens:,} tokens | attempt {attempt} | {config.out}"
        )

    def say(self, line: str) -> None:
        """Print a line, on rank 0."""
        if self.leader:
            print(line, flush=True)

    def restart_clock(self) -> None:
        """Leave out of the speed what was not training: evaluation, a checkpoint, a rewind."""
        self.since, self.steps_since = time.perf_counter(), 0

    def step(self, step: int, loss: float, norm: float, rate: float, more: Mapping[str, float]) -> None:
        """Report a finished step, counted from 1: `loss` of the global batch, gradient `norm`, learning `rate`.

        The record alone holds what `more` there is.
        """
        self.steps_since += 1
        if not self.leader or (step % self.config.log_every and step not in {1, self.config.steps}):
            return
        tokens_per_s = self.steps_since * self.config.global_batch_tokens / (time.perf_counter() - self.since)
        self.restart_clock()
        mfu = self.mfu_per_rate * tokens_per_s if self.mfu_per_rate else None
        eta = (self.config.steps - step) * self.config.global_batch_tokens / tokens_per_s
        memory = memory_bytes()
        self.record(
            step,
            loss=loss,
            lr=rate,
            grad_norm=norm,
            tokens_per_s=tokens_per_s,
            tokens=step * self.config.global_batch_tokens,
            mfu=mfu,
            memory_bytes=memory,
            eta_s=eta,
            **(self.sensors.take() if self.sensors else {}),
            **more,
        )
        each = f" ({tokens_per_s / self.world_size:,.0f} each)" if self.world_size > 1 else ""
        self.say(
            f"step {step}/{self.config.steps} | loss {loss:.4f} | lr {rate:.2e} | grad {norm:.3f} | "
            f"{tokens_per_s:,.0f} tok/s{each} | mfu {f'{mfu:.1%}' if mfu else '-'} | mem {memory / 1e9:.2f} GB | "
            f"eta {duration(eta)}"
        )

    def evaluation(self, step: int, loss: float, sources: Mapping[str, float]) -> None:
        """Report the held-out loss after `step` steps, and that of each of a mixture's sources."""
        self.record(step, val_loss=loss, **{f"val_loss/{name}": one for name, one in sources.items()})
        each = "".join(f" | {name} {one:.4f}" for name, one in sources.items())
        self.say(f"eval {step}/{self.config.steps} | val loss {loss:.4f}{each}")

    def checkpoint(self, step: int) -> None:
        """Report that the checkpoint of `step` is published: where run folders are out of reach, this tells of it."""
        self.record(step, checkpoint=step)
        self.publish()

    def record(self, step: int, **values: float | None) -> None:
        """Add a point to the record; numbers that are not finite become null, which JSON can hold."""
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
        with self.lock:
            if self.log is None:
                return
            self.seq += 1
            point = {"seq": self.seq, "attempt": self.attempt, "step": step, "time": time.time(), **finite}
            self.log.add(json.dumps(point).encode() + b"\n")
            if self.trackers is not None:
                self.trackers.add(point)
            if self.poster is not None:
                self.poster.add(point)

    def publish(self) -> None:
        """Put the record where others read it, if it is not there; training goes on where that fails."""
        try:
            if self.log is not None:
                self.log.publish()
            if self.trackers is not None:
                self.trackers.publish()
        except OSError as error:
            self.say(f"the record could not be written: {error}")

    def close(self, seconds_left: Callable[[], float] = lambda: math.inf, *, finished: bool = False) -> None:
        """Close the record, and wait for the last points to be acknowledged and tracked, while there are seconds left.

        That takes up to 30 s; in a run that has `finished`, where the control plane cannot read the record by itself
        and is away, up to 15 minutes.
        """
        if self.log is None:
            return
        ends_by = time.monotonic() + LAST_POSTS
        self.publish()
        with self.lock:
            self.log.close()
            self.log = None
        if self.poster is not None:
            self.poster.closing.set()
        if self.trackers is not None:
            self.trackers.close(min(LAST_POSTS, seconds_left()))
        if self.poster is not None:
            self.poster.close(ends_by, seconds_left, self.say, patient=finished)
        if self.sensors is not None:
            self.sensors.close()


class Poster:
    """Posts points to the control plane in a thread of its own, each until it is acknowledged.

    Calls `save` once for each new number under which a checkpoint is asked for; a number is the same until the next.
    """

    def __init__(self, url: str, token: Callable[[], str], attempt: int, save: Callable[[], None]) -> None:
        self.url, self.token, self.attempt, self.save = url, token, attempt, save
        self.points: list[Mapping[str, Any]] = []
        self.saved, self.asked = 0, time.monotonic()  # the last number that was acted on; when the last answer came
        self.every = POST_EVERY
        self.away = False  # no answer to the last post, or one that says that it will be back
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self.run, name="metrics", daemon=True)
        self.thread.start()

    def add(self, point: Mapping[str, Any]) -> None:
        """Queue a point; returns at once."""
        with self.lock:
            self.points.append(point)

    def run(self) -> None:
        """Post what is queued until the run ends and nothing is left."""
        wait = POST_EVERY
        while not (self.closing.wait(wait) and not self.points):
            try:
                self.post()
                wait, self.away = self.every if len(self.points) < POST_POINTS else POST_EVERY, False
            except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:  # points wait here
                self.away = not isinstance(error, HTTPError) or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
                wait = min(2 * wait, SLOWEST_POST)
                if self.closing.is_set():
                    time.sleep(LAST_EVERY)

    def post(self) -> None:
        """Post the oldest points, and forget those that are acknowledged; without any, ask what is wanted now and then.

        Raises OSError (every answer but success is one), HTTPException; for nonsense ValueError, KeyError, TypeError.
        """
        with self.lock:
            points = self.points[:POST_POINTS]
        if not points and (self.closing.is_set() or time.monotonic() < self.asked + ASK_EVERY):
            return
        body = json.dumps({"attempt": self.attempt, "points": points}).encode()
        headers = {"Authorization": f"Bearer {self.token()}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url, body, headers)  # noqa: S310 - the control plane's own URL
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310 - the same
            answer = json.load(reply)
        acknowledged, wanted, self.asked = answer["acknowledged"], answer.get("save", 0), time.monotonic()
        self.every = min(max(POST_EVERY, answer.get("wait_s", 0)), LONGEST_EVERY)
        if wanted > self.saved:
            self.saved = wanted
            self.save()
        with self.lock:
            self.points = [point for point in self.points if point["seq"] > acknowledged]

    def close(
        self, ends_by: float, seconds_left: Callable[[], float], say: Callable[[str], None], *, patient: bool
    ) -> None:
        """Once it is `closing`, wait for the last acknowledgements until `ends_by`, or longer.

        If `patient`, a pod waits for a control plane that is away, up to 15 minutes in all. Only a pod's token is in a
        file, and only a pod's record is out of the control plane's reach.
        """
        longest = ends_by + LAST_POSTS_AWAY - LAST_POSTS if patient and os.environ.get(TOKEN_FILE) else ends_by
        reminded = time.monotonic() - 0.9 * REMIND_EVERY  # so that the first comes soon
        while self.thread.is_alive():
            now = time.monotonic()
            left = min((longest if self.away else ends_by) - now, seconds_left())
            if left <= 0:
                say(f"{len(self.points):,} points were not acknowledged by {self.url}; they are in metrics.jsonl")
                return
            if now > reminded + REMIND_EVERY:
                say(f"{len(self.points):,} points wait for the control plane, which is away: {self.url}")
                reminded = now
            self.thread.join(min(left, LAST_EVERY))
