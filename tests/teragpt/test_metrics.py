from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from teragpt.config import resolve
from teragpt.reporting import metrics
from teragpt.reporting.metrics import Metrics, duration, memory_bytes, peak_flops


class Plane(ThreadingHTTPServer):
    """A control plane that answers with the statuses of `refusals`, then acknowledges a few points at a time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refusals: Iterator[int] = iter(())
        self.nonsense: list[bytes] = []  # instead of an acknowledgement
        self.at_once = 3
        self.wanted: dict[str, float] = {}
        self.tokens: set[str | None] = set()
        self.points: dict[int, dict[str, Any]] = {}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        plane = self.server
        assert isinstance(plane, Plane)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        plane.tokens.add(self.headers["Authorization"])
        if refusal := next(plane.refusals, None):
            self.send_error(refusal)
            return
        plane.points.update({point["seq"]: point for point in body["points"][: plane.at_once]})
        acknowledgement = json.dumps({"acknowledged": max(plane.points, default=0), **plane.wanted}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(plane.nonsense.pop() if plane.nonsense else acknowledgement)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    server = Plane()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("TERAGPT_RUN_URL", f"http://127.0.0.1:{server.server_port}/v1/runs/run_1")
    monkeypatch.setenv("TERAGPT_RUN_TOKEN", "secret")
    monkeypatch.setattr(metrics, "POST_EVERY", 0.02)
    monkeypatch.setattr(metrics, "LAST_EVERY", 0.02)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def report(folder: Path, rank: int = 0, save: Callable[[], None] = lambda: None, **settings: object) -> Metrics:
    return Metrics(resolve({"out": str(folder), "steps": 20, **settings}), 1, rank, 2, 1234, save)


def recorded(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_a_readable_line_and_a_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = report(tmp_path)
    one.step(1, 3.14159, 0.5, 0.004, {})
    one.evaluation(1, 2.71828, {"web": 2.5})
    one.close()
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("step 1/20 | loss 3.1416 | lr 4.00e-03 | grad 0.500 | ")
    assert " tok/s (" in said[1]
    assert said[2] == "eval 1/20 | val loss 2.7183 | web 2.5000"
    step, evaluation = recorded(tmp_path)
    assert (step["seq"], step["step"], step["loss"], step["tokens"], step["attempt"]) == (1, 1, 3.14159, 2048, 1)
    assert step["mfu"] is None
    assert step["memory_bytes"] > 0
    assert evaluation["val_loss"] == 2.71828


def test_only_logged_steps_are_reported_and_the_record_is_added_to(tmp_path: Path) -> None:
    for _ in range(2):
        one = report(tmp_path, log_every=5)
        for step in range(1, 21):
            one.step(step, 1.0, 1.0, 1.0, {})
        one.close()
    assert [point["step"] for point in recorded(tmp_path)] == [1, 5, 10, 15, 20] * 2


def test_numbers_that_are_not_finite_are_null_in_the_record(tmp_path: Path) -> None:
    one = report(tmp_path)
    one.step(1, math.nan, math.inf, 0.1, {})
    one.close()
    assert recorded(tmp_path)[0]["loss"] is None
    assert recorded(tmp_path)[0]["grad_norm"] is None


def test_other_ranks_keep_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = report(tmp_path, rank=1)
    one.step(1, 1.0, 1.0, 1.0, {})
    one.close()
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "metrics.jsonl").exists()


def test_every_point_is_acknowledged_whatever_was_answered_before(tmp_path: Path, plane: Plane) -> None:
    plane.refusals, plane.nonsense = iter([401, 403, 404, 500, 503]), [b"{}", b"<html>", b"[]"]
    one = report(tmp_path)
    for step in range(1, 21):
        one.step(step, 1.0 / step, 1.0, 1.0, {})
    one.close()
    assert sorted(plane.points) == list(range(1, 21))
    assert plane.tokens == {"Bearer secret"}
    assert [plane.points[seq] for seq in sorted(plane.points)] == recorded(tmp_path)


def test_reports_come_as_seldom_as_the_answer_asks_and_the_last_ones_at_once(tmp_path: Path, plane: Plane) -> None:
    plane.wanted = {"wait_s": 60.0}
    one = report(tmp_path)
    assert one.poster is not None
    one.step(1, 1.0, 1.0, 1.0, {})
    while one.poster.points or one.poster.every == metrics.POST_EVERY:
        time.sleep(0.01)
    assert one.poster.every == metrics.LONGEST_EVERY
    for step in range(2, 21):
        one.step(step, 1.0, 1.0, 1.0, {})
    started = time.monotonic()
    one.close()
    assert time.monotonic() < started + metrics.LONGEST_EVERY / 2
    assert sorted(plane.points) == list(range(1, 21))


def test_a_control_plane_that_stays_away_costs_the_end_of_a_run_a_bounded_time(
    tmp_path: Path, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "LAST_POSTS", 0.2)
    plane.refusals = repeat(503)
    one = report(tmp_path)
    one.step(1, 1.0, 1.0, 1.0, {})
    one.close()
    assert plane.points == {}
    assert len(recorded(tmp_path)) == 1
    plane.refusals = iter(())  # so that the thread can end
    assert one.poster is not None
    one.poster.thread.join(60)
    assert not one.poster.thread.is_alive()


def test_a_run_that_has_ended_asks_an_absent_control_plane_now_and_then(
    tmp_path: Path, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "LAST_EVERY", 0.2)
    monkeypatch.setattr(metrics, "LAST_POSTS", 1.0)
    plane.refusals = refusals = iter([503] * 1000)
    one = report(tmp_path)
    one.step(1, 1.0, 1.0, 1.0, {})
    one.close()
    plane.refusals = iter(())  # so that the thread can end
    assert 1000 - len(list(refusals)) <= 20


def test_the_token_file_is_read_at_each_post_and_wins(
    tmp_path: Path, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("TERAGPT_RUN_TOKEN_FILE", str(file))
    one = report(tmp_path)
    assert one.poster is not None
    for seq, token in enumerate(["first", "second"], 1):
        file.write_text(f"{token}\n")
        one.step(seq, 1.0, 1.0, 1.0, {})
        while one.poster.points:
            time.sleep(0.005)
    file.unlink()
    one.step(3, 1.0, 1.0, 1.0, {})
    one.close(lambda: 0.0)  # nothing to show: the point waits
    assert plane.tokens == {"Bearer first", "Bearer second"}
    file.write_text("third")
    one.poster.thread.join(60)
    assert sorted(plane.points) == [1, 2, 3]


@pytest.mark.parametrize(
    ("answer", "finished", "in_a_file", "waits"),
    [
        (503, True, True, True),  # the control plane is away, and nobody else can tell of this run
        (503, True, False, False),  # the control plane reads the record by itself
        (503, False, True, False),  # the next attempt waits for this one's end
        (401, True, True, False),  # this attempt counts no more
    ],
)
def test_a_pod_that_has_finished_waits_for_a_control_plane_that_is_away(
    tmp_path: Path,
    plane: Plane,
    monkeypatch: pytest.MonkeyPatch,
    answer: int,
    finished: bool,
    in_a_file: bool,
    waits: bool,
) -> None:
    monkeypatch.setattr(metrics, "LAST_POSTS", 0.0)
    monkeypatch.setattr(metrics, "REMIND_EVERY", 0.0)
    if in_a_file:
        (tmp_path / "token").write_text("secret")
        monkeypatch.setenv("TERAGPT_RUN_TOKEN_FILE", str(tmp_path / "token"))
    plane.refusals = repeat(answer)
    one, said = report(tmp_path), list[str]()

    def say(line: str) -> None:
        said.append(line.partition(" points ")[2])
        plane.refusals = iter(())

    monkeypatch.setattr(one, "say", say)
    assert one.poster is not None
    one.record(1, loss=1.0)
    while one.poster.away != (answer == 503) or not plane.tokens:
        time.sleep(0.005)
    one.close(finished=finished)
    assert said[0].startswith("wait for the control plane, which is away" if waits else "were not acknowledged")
    one.poster.thread.join(60)
    assert sorted(plane.points) == [1]


def test_a_run_that_is_told_to_stop_posts_until_its_grace_period_ends(
    tmp_path: Path, plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("secret")
    monkeypatch.setenv("TERAGPT_RUN_TOKEN_FILE", str(tmp_path / "token"))
    plane.refusals = repeat(503)
    one = report(tmp_path)
    one.step(1, 1.0, 1.0, 1.0, {})
    left = iter([4.5, 0.04, 0.02, 0.0])  # the first is the trackers'
    one.close(lambda: next(left), finished=True)
    assert next(left, None) is None
    assert plane.points == {}
    assert "1 points were not acknowledged" in capsys.readouterr().out
    one.close()  # nothing is left to close
    plane.refusals = iter(())  # so that the thread can end
    assert one.poster is not None
    one.poster.thread.join(60)


def test_a_checkpoint_that_is_asked_for_is_wanted_once_with_points_and_without(
    tmp_path: Path, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = threading.Semaphore(0)
    one = report(tmp_path, save=wanted.release)
    one.record(1, loss=1.0)
    while not plane.points:
        time.sleep(0.005)
    assert not wanted.acquire(blocking=False)
    plane.wanted = {"save": 4}
    for step in range(2, 30):
        one.record(step, loss=1.0)
    assert wanted.acquire(timeout=60)
    monkeypatch.setattr(metrics, "ASK_EVERY", 0.0)
    while len(plane.points) < 29:
        time.sleep(0.005)
    plane.wanted = {"save": 7}  # of which only an answer to nothing can tell
    assert wanted.acquire(timeout=60)
    one.close()
    assert not wanted.acquire(blocking=False)


def test_a_published_checkpoint_is_a_point(tmp_path: Path) -> None:
    one = report(tmp_path)
    one.step(1, 1.0, 1.0, 1.0, {})
    one.checkpoint(1)
    one.close()
    one.checkpoint(2)  # published as the run failed: nobody reads on
    point = recorded(tmp_path)[-1]
    assert point == {"seq": 2, "attempt": 1, "step": 1, "time": point["time"], "checkpoint": 1}


def test_durations_read_as_clocks() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


def test_a_gpu_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5)
    for name, peak in [("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 PCIe", 756e12), ("GeForce", None)]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert peak_flops() == peak
    assert memory_bytes() == 5
