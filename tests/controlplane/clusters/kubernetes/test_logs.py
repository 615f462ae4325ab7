from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.kubernetes import logs
from controlplane.clusters.kubernetes.connection import Connection
from controlplane.clusters.kubernetes.logs import Collector
from controlplane.clusters.shelf import Folder
from tests.controlplane.clusters.kubernetes.hands import eventually
from tests.controlplane.clusters.kubernetes.server import ApiServer, status

Start = Callable[..., Collector]


def at(second: int, text: str) -> str:
    return f"2026-11-24T12:00:{second:02}.000000000Z {text}"


@pytest.fixture
def start(connection: Connection, tmp_path: Path) -> Iterator[Start]:
    made: list[Collector] = []

    def start(**options: int) -> Collector:
        made.append(Collector(connection, Folder(tmp_path), **options))  # type: ignore[arg-type] # numbers of threads
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "AGAIN_S", 0.01)
    monkeypatch.setattr(logs, "SILENT_S", 0.05)
    monkeypatch.setattr(logs, "TROUBLE_S", 0.02)


def archived(tmp_path: Path, pod: str) -> str:
    file = tmp_path / "run" / f"{pod}.log"
    return file.read_text() if file.exists() else ""


def test_a_running_pod_is_followed(server: ApiServer, start: Start, tmp_path: Path) -> None:
    collector = start()
    server.write_log("pod", at(0, "one"))
    collector.consider("run", "pod", "u", "pytorch", ended=False)
    eventually(lambda: archived(tmp_path, "pod") == "one\n")
    server.write_log("pod", at(1, "two"))
    eventually(lambda: archived(tmp_path, "pod") == "one\ntwo\n")
    asked = [request.query for request in server.requests]
    assert asked == [{"container": "pytorch", "timestamps": "true", "follow": "true"}]


def test_a_cut_stream_is_taken_up_where_it_was_cut(server: ApiServer, start: Start, tmp_path: Path) -> None:
    collector = start()
    server.write_log("pod", at(0, "one"), at(3, "two"))
    collector.consider("run", "pod", "u", "pytorch", ended=False)
    eventually(lambda: archived(tmp_path, "pod") == "one\ntwo\n")
    server.cut_watches()
    server.write_log("pod", at(4, "three"))
    eventually(lambda: archived(tmp_path, "pod") == "one\ntwo\nthree\n")
    assert server.requests[-1].query["sinceTime"] == "2026-11-24T12:00:02Z"


def test_another_control_plane_goes_on_where_the_first_one_stopped(
    server: ApiServer, start: Start, tmp_path: Path
) -> None:
    first = start()
    server.write_log("pod", at(0, "one"), at(3, "two"))
    first.consider("run", "pod", "u", "pytorch", ended=False)
    eventually(lambda: archived(tmp_path, "pod") == "one\ntwo\n")
    first.close()
    server.write_log("pod", at(5, "three"), ended=True)
    second = start()
    second.consider("run", "pod", "u", "pytorch", ended=True)
    assert second.settled(["u"], 10)
    assert archived(tmp_path, "pod") == "one\ntwo\nthree\n"


def test_what_is_all_there_is_not_read_again(server: ApiServer, start: Start, tmp_path: Path) -> None:
    server.write_log("pod", at(0, "one"), ended=True)
    for _ in range(2):
        collector = start()
        collector.consider("run", "pod", "u", "pytorch", ended=True)
        assert collector.settled(["u"], 10)
    assert len(server.requests) == 1
    assert archived(tmp_path, "pod") == "one\n"


def test_more_pods_than_threads_take_turns(server: ApiServer, start: Start, tmp_path: Path) -> None:
    collector = start(threads=2)
    for number in range(6):
        server.write_log(f"pod-{number}", at(0, f"first of {number}"))
        collector.consider("run", f"pod-{number}", f"u{number}", "pytorch", ended=False)
    for second in (1, 2, 3):
        for number in range(6):
            server.write_log(f"pod-{number}", at(second, f"more of {number}"))
        eventually(
            lambda: all(archived(tmp_path, f"pod-{number}").count("more") == second for number in range(6))  # noqa: B023
        )


@pytest.fixture
def left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that was silent once is not read again for an hour by itself."""
    monkeypatch.setattr(logs, "SILENT_S", 3600.0)
    monkeypatch.setattr(logs, "LONGER", 1e6)


def reads(server: ApiServer, pod: str) -> int:
    return sum(f"/{pod}/log" in request.path for request in list(server.requests))


@pytest.mark.usefixtures("left_alone")
def test_a_silent_pod_is_read_less_and_less_until_somebody_looks(
    server: ApiServer, start: Start, tmp_path: Path
) -> None:
    collector = start(threads=1)
    for pod in ("silent", "talks"):
        server.write_log(pod, at(0, "one"))
        collector.consider("run", pod, f"uid of {pod}", "pytorch", ended=False)
    for second in range(1, 6):
        server.write_log("talks", at(second, "more"))
        eventually(lambda: archived(tmp_path, "talks").count("more") == second)  # noqa: B023
        collector.wanted("uid of talks")
    assert reads(server, "silent") <= 3  # a first time, then in turn, and then no more
    server.write_log("silent", at(9, "two"))
    collector.wanted("uid of silent")
    eventually(lambda: archived(tmp_path, "silent") == "one\ntwo\n")


def test_first_pods_are_followed_while_the_others_take_turns(server: ApiServer, start: Start, tmp_path: Path) -> None:
    collector = start(threads=3)
    for number in range(6):
        server.write_log(f"pod-{number}", at(0, "one"))
        collector.consider("run", f"pod-{number}", f"u{number}", "pytorch", ended=False, first=number > 3)
    eventually(lambda: all(archived(tmp_path, f"pod-{number}") == "one\n" for number in range(6)))

    before = {pod: reads(server, pod) for pod in ("pod-4", "pod-5")}
    for second in range(1, 4):
        for pod in before:
            server.write_log(pod, at(second, "more"))
        eventually(lambda: all(archived(tmp_path, pod).count("more") == second for pod in before))  # noqa: B023
    assert {pod: reads(server, pod) for pod in before} == before  # their lines came by themselves
    server.write_log("pod-0", at(1, "two"))
    collector.wanted("u0")
    eventually(lambda: archived(tmp_path, "pod-0") == "one\ntwo\n")


def test_pods_that_rest_are_read_in_turn_at_a_pace_that_does_not_grow_with_them(
    server: ApiServer, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "AGAIN_S", 0.001)
    monkeypatch.setattr(logs, "SILENT_S", 0.0)
    monkeypatch.setattr(logs, "SILENT_READS_PER_S", 20)
    collector, pods = start(threads=2), [f"pod-{number}" for number in range(8)]
    for pod in pods:
        server.write_log(pod, at(0, "one"))
        collector.consider("run", pod, f"uid of {pod}", "pytorch", ended=False)
    eventually(lambda: all(reads(server, pod) >= 2 for pod in pods))  # the second time they were silent
    before, began = {pod: reads(server, pod) for pod in pods}, time.monotonic()
    eventually(lambda: all(reads(server, pod) >= before[pod] + 3 for pod in pods))
    several = sum(reads(server, pod) - before[pod] for pod in pods)
    assert 24 <= several <= 20 * (time.monotonic() - began) + 3
    assert all(reads(server, pod) <= before[pod] + 5 for pod in pods)  # none was forgotten, none was preferred
    server.write_log("pod-3", at(1, "two"))
    eventually(lambda: archived(tmp_path, "pod-3") == "one\ntwo\n")


@pytest.mark.usefixtures("left_alone")
def test_a_silent_pod_that_ends_is_read_at_once(server: ApiServer, start: Start, tmp_path: Path) -> None:
    collector = start(threads=1)
    for number in range(2):
        server.write_log(f"pod-{number}", at(0, "one"))
        collector.consider("run", f"pod-{number}", f"u{number}", "pytorch", ended=False)
    eventually(lambda: reads(server, "pod-0") >= 2)
    server.write_log("pod-0", at(1, "the end"), ended=True)
    collector.consider("run", "pod-0", "u0", "pytorch", ended=True)
    assert collector.settled(["u0"], 20)
    assert archived(tmp_path, "pod-0") == "one\nthe end\n"


def test_a_stream_that_opens_as_another_pod_comes_does_not_keep_the_thread(
    server: ApiServer, start: Start, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, may_open, opened = threading.Event(), threading.Event(), connection.stream

    @contextmanager
    def slowly(*arguments: Any, **options: Any) -> Iterator[Any]:
        with opened(*arguments, **options) as stream:
            opening.set()
            may_open.wait(20)
            yield stream

    monkeypatch.setattr(connection, "stream", slowly)
    server.write_log("pod-0", at(0, "one"))
    server.write_log("pod-1", at(0, "another"))
    collector = start(threads=1)
    collector.consider("run", "pod-0", "u0", "pytorch", ended=False)
    assert opening.wait(20)
    collector.consider("run", "pod-1", "u1", "pytorch", ended=False)
    may_open.set()
    eventually(lambda: archived(tmp_path, "pod-1") == "another\n")
    eventually(lambda: archived(tmp_path, "pod-0") == "one\n")


def test_a_pod_that_is_gone_leaves_what_was_read(server: ApiServer, start: Start, tmp_path: Path) -> None:
    collector = start()
    server.write_log("pod", at(0, "one"))
    collector.consider("run", "pod", "u", "pytorch", ended=False)
    eventually(lambda: archived(tmp_path, "pod") == "one\n")
    server.fail(status(404, "NotFound", "pods not found"), path="/log$", times=100)
    server.cut_watches()
    collector.gone("u")
    assert collector.settled(["u"], 10)
    eventually(lambda: not collector._sources)


def test_the_end_of_a_line_that_never_came_is_not_waited_for(server: ApiServer, start: Start, tmp_path: Path) -> None:
    collector = start()
    server.write_log("pod", at(0, "one"))
    server.logs["pod"].append(at(1, "cut off").encode())
    collector.consider("run", "pod", "u", "pytorch", ended=False)
    eventually(lambda: archived(tmp_path, "pod") == "one\n")
    server.fail(status(404, "NotFound", "pods not found"), path="/log$", times=1000)
    server.write_log("pod", ended=True)  # the stream ends, and the pod is removed before it is read again
    collector.gone("u")
    eventually(lambda: archived(tmp_path, "pod") == "one\ncut off\n")


def test_trouble_is_tried_again(server: ApiServer, start: Start, tmp_path: Path) -> None:
    server.fail(status(500, "InternalError", "the kubelet does not answer"), path="/log$", times=2)
    server.fail(status(400, "BadRequest", "container is waiting to start"), path="/log$")
    server.write_log("pod", at(0, "one"), ended=True)
    collector = start()
    collector.consider("run", "pod", "u", "pytorch", ended=True)
    eventually(lambda: archived(tmp_path, "pod") == "one\n")


def test_a_pod_that_the_kubelet_does_not_know_yet_is_asked_for_again(
    server: ApiServer, start: Start, tmp_path: Path
) -> None:
    server.fail(status(404, "NotFound", "pod does not exist"), path="/log$", times=2)
    server.write_log("pod", at(0, "one"), ended=True)
    collector = start()
    collector.consider("run", "pod", "u", "pytorch", ended=True)
    assert collector.settled(["u"], 10)
    assert archived(tmp_path, "pod") == "one\n"


def test_a_log_that_may_not_be_read_holds_up_nothing(server: ApiServer, start: Start) -> None:
    server.fail(status(403, "Forbidden", "pods/log is forbidden"), path="/log$", times=1000)
    collector = start()
    collector.consider("run", "pod", "u", "pytorch", ended=True)
    assert collector.settled(["u"], 10)


def test_an_ended_pod_that_has_not_been_read_holds_up_a_deletion(server: ApiServer, start: Start) -> None:
    server.fail(status(500, "InternalError", "the kubelet does not answer"), path="/log$", times=1000)
    collector = start()
    collector.consider("run", "pod", "u", "pytorch", ended=True)
    assert not collector.settled(["u"], 0.05)
    assert collector.settled(["another"], 0)


def test_a_forgotten_object_leaves_nothing(server: ApiServer, start: Start, tmp_path: Path) -> None:
    server.write_log("pod", at(0, "one"), ended=True)
    collector = start()
    collector.consider("run", "pod", "u", "pytorch", ended=True)
    assert collector.settled(["u"], 10)
    collector.forget("run")
    assert not (tmp_path / "run").exists()


def test_of_a_forgotten_object_that_lives_nothing_more_is_kept_nor_remembered_once_it_is_gone(
    server: ApiServer, start: Start, tmp_path: Path
) -> None:
    server.write_log("pod", at(0, "one"), ended=True)
    collector = start()
    collector.forget("run", lives=True)
    collector.consider("run", "pod", "u", "pytorch", ended=True)
    assert collector.settled(["u"], 0)
    collector.vanished("run")
    collector.consider("run", "pod", "u", "pytorch", ended=True)  # another of that name
    assert collector.settled(["u"], 10)
    assert archived(tmp_path, "pod") == "one\n"


def test_a_disk_that_refuses_is_tried_again(server: ApiServer, start: Start, tmp_path: Path) -> None:
    server.write_log("pod", at(0, "one"), ended=True)
    (tmp_path / "run").write_text("in the way")
    collector = start()
    collector.consider("run", "pod", "u", "pytorch", ended=True)
    assert not collector.settled(["u"], 0.1)
    (tmp_path / "run").unlink()
    assert collector.settled(["u"], 10)
    assert archived(tmp_path, "pod") == "one\n"


class FullDisk(Folder):
    """A folder on a disk that is full at its first writes: a part of an append is taken, and no cursor."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.refusals = {"append": 2, "put": 2}

    def append(self, name: str, data: bytes) -> None:
        if refused := self._refuses("append"):
            super().append(name, data[: len(data) // 2])
            raise refused
        super().append(name, data)

    def put(self, name: str, data: bytes) -> None:
        if refused := self._refuses("put"):
            raise refused
        super().put(name, data)

    def _refuses(self, what: str) -> OSError | None:
        self.refusals[what] -= 1
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if self.refusals[what] >= 0 else None


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "followed"])
def test_a_disk_that_fills_up_while_a_log_is_written_doubles_and_cuts_no_line(
    server: ApiServer, connection: Connection, tmp_path: Path, ended: bool
) -> None:
    lines = [at(second, f"line {second}") for second in range(9)]
    server.write_log("pod", *lines, ended=ended)
    shelf = FullDisk(tmp_path)
    collector = Collector(connection, shelf)
    collector.consider("run", "pod", "u", "pytorch", ended=ended)
    whole = "".join(f"line {second}\n" for second in range(9))
    eventually(
        lambda: all(left < 0 for left in shelf.refusals.values()) and len(archived(tmp_path, "pod")) >= len(whole)
    )
    server.write_log("pod", ended=True)
    collector.consider("run", "pod", "u", "pytorch", ended=True)
    assert collector.settled(["u"], 10)
    collector.close()
    assert archived(tmp_path, "pod") == whole
