from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.client import ApiError, Client, Messages, ServerEvent, Unreachable
from tests.controlplane.plane import Plane, opened, serving

TOKEN = "a-token"
DEADLINE_S = 60.0


@pytest.fixture
def plane(tmp_path: Path, migrated: Path) -> Generator[Plane]:
    with opened(tmp_path / "home", migrated, token=TOKEN) as plane:
        yield plane


@pytest.fixture
def client(plane: Plane) -> Generator[Client]:
    with serving(plane.app()) as url, Client(url, TOKEN) as client:
        yield client


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Following:
    """Reads a stream in a thread, as a user's terminal would."""

    def __init__(self, stream: Iterator[Any]) -> None:
        self.told: list[Any] = []
        self.thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self.thread.start()

    def _read(self, stream: Iterator[Any]) -> None:
        for each in stream:
            self.told.append(each)

    def all(self) -> list[Any]:
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        return self.told


def points(*seqs: int) -> list[dict[str, Any]]:
    return [{"seq": seq, "step": seq, "time": 1795518320.0 + seq, "loss": 1.0 / seq} for seq in seqs]


def report(client: Client, token: str, run: str, *seqs: int) -> None:
    headers = {"authorization": f"Bearer {token}"}
    body = {"attempt": 1, "points": points(*seqs)}
    httpx.post(f"{client.url}/runs/{run}/metrics", json=body, headers=headers).raise_for_status()


def test_a_run_is_created_found_cancelled_and_tried_again(client: Client, plane: Plane) -> None:
    made = client.create({"size": "tiny", "name": "Größe 1"}, idempotency_key="k")
    assert client.create({"size": "tiny", "name": "Größe 1"}, idempotency_key="k")["id"] == made["id"]
    assert client.run("Größe 1")["id"] == client.run(made["id"])["id"] == made["id"]
    assert client.cancel(made["id"])["desired"] == "cancelled"
    plane.reconciler.step()
    assert client.run(made["id"])["phase"] == "cancelled"
    assert client.retry(made["id"])["retry_of"] == made["id"]


def test_a_run_is_changed_cloned_deleted_restored_and_purged(client: Client, plane: Plane) -> None:
    run = client.create({"size": "tiny", "name": "one", "labels": {"a": "b"}})
    changed = client.change("one", {"notes": "x", "pinned": True}, revision=run["revision"])
    assert (changed["notes"], changed["pinned"], changed["revision"], changed["user"]) == ("x", True, 2, "local")
    with pytest.raises(ApiError) as caught:
        client.change("one", {"notes": "y"}, revision=run["revision"])
    assert (caught.value.status, caught.value.code) == (412, "changed")
    assert [one["id"] for one in client.runs(pinned=True, size=["tiny"], since=run["created_at"])] == [run["id"]]
    assert list(client.runs(until=run["created_at"])) == list(client.runs(cluster=["elsewhere"])) == []
    clone = client.clone("one", {"train": {"seed": 3}}, "k")
    assert clone["id"] == client.clone("one", {"train": {"seed": 3}}, "k")["id"]
    assert (clone["clone_of"], clone["spec"]["train"]) == (run["id"], {"seed": 3})
    assert client.checkpoints("one") == {"folder": run["folder"], "seen": True, "items": []}
    assert client.usage("label:a", since=run["created_at"])["items"] == []
    plane.end(run["id"])
    with pytest.raises(ApiError, match="has been changed since"):
        client.delete("one", revision=1)
    client.delete("one", revision=3)
    assert [one["id"] for one in client.deleted(q="one")] == [run["id"]]
    assert client.restore_run(run["id"])["revision"] == 5
    client.delete("one")
    left = client.remains(run["id"])
    assert client.purge(run["id"]) == left
    assert list(client.deleted()) == []


def test_a_run_is_held_waited_for_and_read(
    client: Client, plane: Plane, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = client.submit({"size": "tiny", "name": "held"})
    assert client.handle("held").id == run.id == run.get()["id"]
    with pytest.raises(TimeoutError, match="is queued after 0 s"):
        run.wait(timeout_s=0)
    report(client, plane.token(run.id), run.id, 1, 2)
    plane.write(plane.start(run.id), "one\ntwo\f2\n")
    assert list(run.logs(tail=1)) == ["two\f2"]
    lines = Following(run.logs(follow=True))
    monkeypatch.setattr("controlplane.client.sync.LOOK_EVERY_S", 0.01)
    waited = threading.Thread(target=run.wait, kwargs={"progress": True})
    waited.start()
    plane.succeed(run.id)
    waited.join(DEADLINE_S)
    assert capsys.readouterr().out.splitlines()[-1].startswith("succeeded | step 2/")
    assert lines.all() == ["one", "two\f2"]
    assert [event["seq"] for event in run.events()] == [event["seq"] for event in run.events(follow=True)]
    assert list(run.metrics(keys=["loss"])["loss"]) == [1.0, 0.5]
    assert run.retry().get()["retry_of"] == run.id


def test_each_call_without_a_key_makes_a_run(client: Client) -> None:
    assert client.create({"size": "tiny"})["id"] != client.create({"size": "tiny"})["id"]


def test_nothing_is_made_by_plans_and_previews(client: Client) -> None:
    assert client.plan({"size": "175b"})["resolved"]["parameters"] > 170e9
    assert client.preview({"size": "tiny"})["manifest"]["kind"] == "PyTorchJob"
    assert client.sizes()[0]["name"] == "tiny"
    assert list(client.runs()) == []
    assert client.ready()["ready"]


def test_runs_are_listed_over_pages_up_to_a_limit(client: Client, plane: Plane) -> None:
    made = [client.create({"size": "tiny", "labels": {"odd": str(n % 2)}})["id"] for n in range(12)]
    plane.end(made[0])
    assert [run["id"] for run in client.runs()] == made[::-1]
    assert [run["id"] for run in client.runs(limit=5)] == made[:-6:-1]
    assert [run["id"] for run in client.runs(phase=["cancelled"])] == made[:1]
    assert len(list(client.runs(label=["odd=1"]))) == 6
    assert [run["id"] for run in client.runs(q=made[3])] == [made[3]]


def test_more_runs_than_a_page_holds_are_listed_whole(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [client.create({"size": "tiny"})["id"] for _ in range(5)]
    monkeypatch.setattr("controlplane.client.requests.PAGE", 2)
    assert [run["id"] for run in client.runs()] == made[::-1]
    assert [run["id"] for run in client.runs(limit=3)] == made[:-4:-1]


def test_what_belongs_to_a_run_is_shown(client: Client, plane: Plane) -> None:
    run = client.create({"size": "tiny"})
    report(client, plane.token(run["id"]), run["id"], 1, 2, 3, 4)
    name = plane.start(run["id"])
    plane.write(name, "one\ntwo\n[rank 1] other\n")
    assert client.logs(run["id"]) == "one\ntwo\n"
    assert client.logs(run["id"], rank=1, attempt=1, tail=5) == "other\n"
    assert [point["loss"] for point in client.metrics(run["id"], keys=["loss"], downsample=2)] == [1.0, 0.25]
    assert client.attempts(run["id"])[0]["name"] == name == client.manifest(run["id"], 1)["metadata"]["name"]
    pods = client.pods(run["id"], 1)
    assert pods["live"]
    assert [pod["phase"] for pod in pods["items"]] == ["Running"]
    events = client.events(run["id"])
    assert client.events(run["id"], after=events[0]["seq"]) == events[1:]
    assert client.run(run["id"])["progress"]["step"] == 4  # type: ignore[index]


def test_a_refusal_names_every_bad_field(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.create({"size": "huge", "train": {"learning_rate": -1}, "colour": "red"})
    assert (caught.value.status, caught.value.code) == (422, "invalid_request")
    assert {error["pointer"] for error in caught.value.errors} >= {"/size", "/colour"}
    assert "/size: " in str(caught.value)


def test_a_caller_without_the_token_is_told_so(client: Client) -> None:
    with Client(client.url) as stranger, pytest.raises(ApiError) as caught:
        stranger.run("x")
    assert caught.value.status == 401


def test_nobody_there_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with Client(url, patience_s=0) as client, pytest.raises(Unreachable, match=f"127.0.0.1:{port}"):
        client.run("x")


def test_a_stream_gives_up_where_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", stream_patience_s=0.01) as client, pytest.raises(Unreachable):
        list(client.stream_events("x"))


class _Stranger(http.server.BaseHTTPRequestHandler):
    """A server that is no control plane."""

    def do_GET(self) -> None:
        self.send_response(418)
        self.end_headers()
        self.wfile.write(b"<html>I am something else</html>")

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def test_a_reply_of_something_else_is_said_to_be_one() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client, pytest.raises(ApiError, match="418") as caught:
            client.run("x")
        server.shutdown()
        thread.join()
    assert caught.value.code == "unexpected_reply"


def test_lines_are_followed_over_attempts_to_the_end(client: Client, plane: Plane) -> None:
    run = client.create({"size": "tiny"})
    first = plane.start(run["id"])
    plane.write(first, "a 1\n[rank 1] not this\na 2\n")
    following = Following(client.stream_logs(run["id"]))
    until(lambda: following.told == ["a 1", "a 2"])
    plane.write(first, "a 3\nhalf")
    until(lambda: following.told[-1] == "a 3")
    plane.write(first, " a line")
    plane.cluster.end(first, 1)
    plane.reconciler.step()
    until(lambda: client.run(run["id"])["attempt"] == 2)
    until(lambda: plane.reconciler.step() and client.run(run["id"])["phase"] == "pending")
    second = client.run(run["id"])["kubernetes"]["name"]
    plane.cluster.run(second)
    plane.reconciler.step()
    plane.write(second, "b 1\n")
    plane.succeed(run["id"])
    assert following.all() == ["a 1", "a 2", "a 3", "half a line", "b 1"]


def test_following_may_begin_with_the_last_lines(client: Client, plane: Plane) -> None:
    run = client.create({"size": "tiny"})
    name = plane.start(run["id"])
    plane.write(name, "".join(f"line {n}\n" for n in range(100)))
    following = Following(client.stream_logs(run["id"], tail=2))
    until(lambda: len(following.told) == 2)
    plane.write(name, "line 100\n")
    plane.succeed(run["id"])
    assert following.all() == ["line 98", "line 99", "line 100"]


def test_events_and_points_are_followed_to_the_end(client: Client, plane: Plane) -> None:
    run = client.create({"size": "tiny"})
    token = plane.token(run["id"])
    events, curve = Following(client.stream_events(run["id"])), Following(client.stream_metrics(run["id"]))
    report(client, token, run["id"], 1, 2)
    until(lambda: len(curve.told) == 2)
    plane.start(run["id"])
    report(client, token, run["id"], 3)
    plane.succeed(run["id"])
    assert [event["seq"] for event in events.all()] == [event["seq"] for event in client.events(run["id"])]
    assert events.told[-1]["data"]["phase"] == "succeeded"
    assert [point["seq"] for point in curve.all()] == [1, 2, 3]


def test_a_stream_survives_its_server_without_loss_or_repetition(plane: Plane) -> None:
    with serving(plane.app()) as url:
        client = Client(url, TOKEN)
        run = client.create({"size": "tiny"})
        token = plane.token(run["id"])
        report(client, token, run["id"], 1, 2)
        following = Following(client.stream_metrics(run["id"]))
        until(lambda: len(following.told) == 2)
        report(client, token, run["id"], 3)
        until(lambda: len(following.told) == 3)
    with serving(plane.app(), port=int(url.rpartition(":")[2])):
        report(client, token, run["id"], 4)
        plane.start(run["id"])
        plane.succeed(run["id"])
        assert [point["seq"] for point in following.all()] == [1, 2, 3, 4]
    client.close()


def test_a_stream_goes_on_after_a_message_that_is_known(client: Client, plane: Plane) -> None:
    run = client.create({"size": "tiny"})
    report(client, plane.token(run["id"]), run["id"], 1, 2, 3)
    plane.end(run["id"])
    assert [point["seq"] for point in client.stream_metrics(run["id"], after="1.2")] == [3]
    with pytest.raises(ApiError) as caught:
        list(client.stream_events(run["id"], after="nonsense"))
    assert caught.value.errors[0]["pointer"] == "header:last-event-id"


def test_a_silent_stream_is_kept_open_by_pings(client: Client) -> None:
    run = client.create({"size": "tiny"})
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx.stream("GET", f"{client.url}/runs/{run['id']}/metrics/stream", headers=headers) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-accel-buffering"] == "no"
        lines = reply.iter_lines()
        assert [line for line, _ in zip(lines, range(6), strict=False) if line] == [": ping"] * 3


def test_messages_are_read_as_the_standard_says() -> None:
    text = ': ping||id: 7|event: point|data: {"a":|data: 1}||data:2||event: empty||retry: 5|id: 9|data: []||data: 1'
    messages = Messages()
    assert [told for line in text.split("|") if (told := messages.line(line))] == [
        ServerEvent("7", "point", {"a": 1}),
        ServerEvent("7", "message", 2),
        ServerEvent("9", "message", []),
    ]
