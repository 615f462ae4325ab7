from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.clusters.kubernetes.archive import PodLog
from controlplane.clusters.shelf import Folder

START = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def stamp(milliseconds: int) -> str:
    """As the kubelet writes it: nine digits."""
    moment = START + timedelta(milliseconds=milliseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06}000Z"


def line(milliseconds: int, text: str) -> bytes:
    return f"{stamp(milliseconds)} {text}\n".encode()


def serve(lines: list[bytes], since: str | None) -> bytes:
    """What a kubelet answers."""
    return b"".join(one for one in lines if since is None or one[: len(since) - 1].decode() >= since[:-1])


def read(folder: Path) -> bytes:
    return Folder(folder).read("pod.log", 0, 1 << 20)


def follow(folder: Path, answer: bytes, *, final: bool = True, whole: bool = True, uid: str = "u") -> PodLog:
    log = PodLog(Folder(folder), "pod", uid)
    continuation = log.continued()
    continuation.take(answer)
    if whole:
        continuation.end(final=final)
    return log


def test_lines_are_kept_without_their_timestamps(tmp_path: Path) -> None:
    follow(tmp_path, line(0, "one") + line(1, "two words") + line(2, ""))
    assert read(tmp_path) == b"one\ntwo words\n\n"


def test_a_line_that_has_not_ended_waits_for_its_end(tmp_path: Path) -> None:
    log = PodLog(Folder(tmp_path), "pod", "u")
    continuation = log.continued()
    continuation.take(line(0, "one") + line(1, "half")[:-3])
    continuation.end(final=False)
    assert read(tmp_path) == b"one\n"
    continuation.take(line(1, "half")[-3:])
    assert read(tmp_path) == b"one\nhalf\n"


def test_the_last_line_of_a_container_may_lack_its_end(tmp_path: Path) -> None:
    follow(tmp_path, line(0, "one") + line(1, "no end")[:-1])
    assert read(tmp_path) == b"one\nno end\n"


def test_the_kubelets_own_remarks_are_no_lines_of_the_pods(tmp_path: Path) -> None:
    follow(tmp_path, line(0, "one") + b"unable to retrieve container logs for containerd://abc\n")
    assert read(tmp_path) == b"one\n"


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.tuples(st.integers(-300, 700), st.text("ab \n", max_size=3)), min_size=1, max_size=30),
    cuts=st.lists(st.tuples(st.integers(0, 1500), st.booleans(), st.booleans()), max_size=6),
)
def test_whatever_is_cut_and_wherever_we_die_nothing_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[int, str]], cuts: list[tuple[int, bool, bool]]
) -> None:
    """Streams end anywhere, the process dies before its cursor is written, lines are a little out of order."""
    folder = tmp_path_factory.mktemp("log")
    clock, lines = 1000, []
    for place, (later, text) in enumerate(texts):
        clock = max(clock, clock + later)
        lines.append(line(clock + min(0, later), f"{place} {text!r}"))
    for length, dies, in_the_middle in cuts:
        log = PodLog(Folder(folder), "pod", "u")
        before = (folder / "pod.cursor").read_bytes() if (folder / "pod.cursor").exists() else None
        log.continued().take(serve(lines, log.since)[:length])
        if dies:  # the log was appended to and the cursor was not
            if before is None:
                (folder / "pod.cursor").unlink(missing_ok=True)
            else:
                (folder / "pod.cursor").write_bytes(before)
            if in_the_middle and before is None and (folder / "pod.log").exists():
                kept = (folder / "pod.log").read_bytes()
                (folder / "pod.log").write_bytes(kept[: len(kept) // 2])
    log = PodLog(Folder(folder), "pod", "u")
    continuation = log.continued()
    continuation.take(serve(lines, log.since))
    continuation.end(final=True)
    assert read(folder) == b"".join(one.split(b" ", 1)[1] for one in lines)


def test_a_log_that_was_rotated_goes_on_with_what_is_younger(tmp_path: Path) -> None:
    follow(tmp_path, line(0, "one") + line(1, "two"), final=False)
    follow(tmp_path, line(500, "much later"))
    assert read(tmp_path) == b"one\ntwo\nmuch later\n"


def test_a_followed_log_that_was_rotated_does_not_wait_for_its_end(tmp_path: Path) -> None:
    follow(tmp_path, line(0, "one"), final=False)
    follow(tmp_path, line(500, "soon") + line(2000, "late"), whole=False)
    assert read(tmp_path) == b"one\nsoon\nlate\n"


def test_a_new_pod_of_the_same_name_writes_behind_the_old_one(tmp_path: Path) -> None:
    follow(tmp_path, line(0, "old")).finish()
    log = follow(tmp_path, line(100, "new"), uid="v")
    assert not log.cursor.done
    assert read(tmp_path) == b"old\nnew\n"


def test_the_cursor_says_when_all_is_there(tmp_path: Path) -> None:
    follow(tmp_path, line(0, "one")).finish()
    assert PodLog(Folder(tmp_path), "pod", "u").cursor.done
    cursor = json.loads((tmp_path / "pod.cursor").read_text())
    assert (cursor["stamp"], cursor["size"]) == (stamp(0), 4)


def test_an_unreadable_cursor_is_made_anew_from_what_is_there(tmp_path: Path) -> None:
    follow(tmp_path, line(0, "one") + line(1, "two"))
    (tmp_path / "pod.cursor").write_text("{")
    follow(tmp_path, line(0, "one") + line(1, "two") + line(2, "three"))
    assert read(tmp_path) == b"one\ntwo\nthree\n"


def test_a_log_can_be_read_in_parts(tmp_path: Path) -> None:
    follow(tmp_path, line(0, "0123456789"))
    assert Folder(tmp_path).read("pod.log", 3, 4) == b"3456"
    assert Folder(tmp_path).read("pod.log", 100, 4) == b""
    assert Folder(tmp_path).read("nothing.log", 0, 4) == b""
