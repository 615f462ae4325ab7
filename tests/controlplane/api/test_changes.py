from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.controlplane.plane import Plane


def refused(reply: Any, status: int, code: str) -> list[str]:
    """The pointers of a refusal, which must be this one."""
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    return [error["pointer"] for error in reply.json()["errors"]]


def test_a_run_is_changed_in_part_from_the_revision_that_was_seen(client: TestClient, run: dict[str, Any]) -> None:
    path = f"/v1/runs/{run['id']}"
    assert client.get(path).headers["etag"] == '"1"'
    body = {"labels": {"team": "lm"}, "notes": "first", "pinned": True, "limits": {"max_restarts": 9}}
    reply = client.patch(path, json=body, headers={"if-match": '"7", "1"'})
    changed = reply.json()
    assert (reply.status_code, reply.headers["etag"], changed["revision"]) == (200, '"2"', 2)
    assert {name: changed[name] for name in ("labels", "notes", "pinned")} == {
        name: body[name] for name in ("labels", "notes", "pinned")
    }
    assert changed["spec"]["limits"] == {"max_restarts": 9}
    assert client.get(path).json() == changed
    assert client.patch(path, json={"notes": None}).json()["notes"] is None
    assert client.patch(path, json={}, headers={"if-match": "*"}).headers["etag"] == '"3"'
    for stale in ('"1"', 'W/"3"', '"abc"', '"2", W/"3"'):
        refused(client.patch(path, json={"notes": "late"}, headers={"if-match": stale}), 412, "changed")
    assert client.get(path).json()["notes"] is None
    assert client.post(f"{path}/cancel").json()["revision"] == 4


BAD: tuple[tuple[dict[str, Any], list[str]], ...] = (
    ({"size": "124m"}, ["/size"]),
    ({"labels": {"a": 1}}, ["/labels/a"]),
    ({"labels": {"-": "x"}}, ["/labels/-"]),
    ({"notes": ""}, ["/notes"]),
    ({"notes": "x" * 10_001}, ["/notes"]),
    ({"pinned": "yes"}, ["/pinned"]),
    (
        {"limits": {"max_restarts": -1, "ttl_after_finish_s": 4000}},
        ["/limits/max_restarts", "/limits/ttl_after_finish_s"],
    ),
    ({"scheduling": {"queue": "x"}}, ["/scheduling/priority", "/scheduling/queue"]),
    ({"scheduling": {"priority": "urgent"}, "notes": "x"}, ["/scheduling/priority"]),
)


def test_a_bad_change_is_pointed_at_and_changes_nothing(client: TestClient, run: dict[str, Any]) -> None:
    for body, where in BAD:
        found = refused(client.patch(f"/runs/{run['id']}", json=body), 422, "invalid_request")
        assert sorted(found) == where, body
    assert client.get(f"/runs/{run['id']}").json() == run


@pytest.mark.parametrize("verb", ["suspend", "resume", "cancel"])
def test_what_is_wanted_of_a_run_is_refused_where_another_change_came_first(
    client: TestClient, run: dict[str, Any], verb: str
) -> None:
    path = f"/runs/{run['id']}"
    changed = client.patch(path, json={"notes": "mine"}).json()
    refused(client.post(f"{path}/{verb}", headers={"if-match": '"1"'}), 412, "changed")
    assert client.get(path).json() == changed
    assert client.post(f"{path}/{verb}", headers={"if-match": '"2"'}).status_code == 202


def test_an_if_match_that_is_none_is_refused(client: TestClient, run: dict[str, Any]) -> None:
    for header in ("3", '"3', "*, *", '"3" "4"'):
        reply = client.patch(f"/runs/{run['id']}", json={}, headers={"if-match": header})
        assert refused(reply, 422, "invalid_request") == ["header:if-match"], header


def test_a_deleted_run_is_shown_restored_and_purged_in_one_place_alone(
    client: TestClient, plane: Plane, run: dict[str, Any]
) -> None:
    path, bin_path = f"/runs/{run['id']}", f"/deleted/{run['id']}"
    refused(client.delete(path), 409, "still_running")
    plane.end(run["id"])
    refused(client.delete(path, headers={"if-match": '"1"'}), 412, "changed")
    refused(client.get(bin_path), 404, "not_found")
    reply = client.delete(path, headers={"if-match": '"2"'})
    assert (reply.status_code, reply.content) == (204, b"")
    for call in (client.get, client.delete):
        refused(call(path), 404, "not_found")
    for part in run["links"].values():
        refused(client.get(part), 404, "not_found")
    assert client.get("/runs").json()["items"] == []
    assert [one["id"] for one in client.get("/deleted?q=first").json()["items"]] == [run["id"]]
    assert client.get("/deleted?q=other").json()["items"] == []
    left = client.get(bin_path).json()
    assert (left["id"], left["name"], left["attempts"], left["folder_removed"]) == (run["id"], "first", 1, False)
    restored = client.post(f"{bin_path}/restore")
    assert (restored.json()["id"], restored.headers["etag"]) == (run["id"], '"4"')
    assert client.delete("/runs/first").status_code == 204
    assert client.delete(bin_path).json() == {**left, "events": left["events"] + 2}
    for call in (client.get, client.delete):
        refused(call(bin_path), 404, "not_found")
    assert client.get("/deleted").json()["items"] == []


def test_a_clone_takes_a_merge_patch_or_nothing_and_a_key(client: TestClient, run: dict[str, Any]) -> None:
    headers = {"idempotency-key": "k"}
    first = client.post(f"/runs/{run['id']}/clone", headers=headers)
    assert (first.status_code, first.json()["clone_of"], first.json()["name"] != "first") == (201, run["id"], True)
    assert first.headers["location"] == f"/v1/runs/{first.json()['id']}"
    assert client.post(f"/runs/{run['id']}/clone", headers=headers).status_code == 200
    refused(client.post(f"/runs/{run['id']}/clone", json={"name": "x"}, headers=headers), 422, "idempotency_key_reused")
    other = client.post("/runs/first/clone", json={"name": "other", "train": {"seed": 5}}).json()
    assert (other["name"], other["spec"]["train"]) == ("other", {"seed": 5})
    bad = client.post("/runs/first/clone", json={"size": None, "train": {"seed": "x"}, "what": 1})
    assert set(refused(bad, 422, "invalid_request")) == {"/size", "/what"}
    assert refused(client.post("/runs/first/clone", json=[1]), 422, "invalid_request") == [""]
    assert len(client.get("/runs").json()["items"]) == 3


def test_runs_are_found_by_size_time_pin_and_words(client: TestClient) -> None:
    one = client.post("/runs", json={"size": "tiny", "name": "Größe", "labels": {"team": "lm"}, "pinned": True}).json()
    two = client.post("/runs", json={"size": "tiny"}).json()

    def ids(**query: Any) -> list[str]:
        reply = client.get("/runs", params=query)
        assert reply.status_code == 200, reply.text
        return [run["id"] for run in reply.json()["items"]]

    assert ids(size=["TINY", "124m"], since="2020-01-01T00:00:00Z") == [two["id"], one["id"]]
    assert ids(pinned=True) == ids(q="grösse TEAM=lm") == ids(until=two["created_at"]) == [one["id"]]
    assert ids(since=two["created_at"], pinned=False) == [two["id"]]
    assert ids(until="2020-01-01T00:00:00+01:00") == []
    assert ids(cluster=one["kubernetes"]["cluster"]) == [two["id"], one["id"]]
    assert ids(cluster="elsewhere") == []
    wrong = client.get("/runs", params={"size": "900m", "since": "2020-01-01", "pinned": "perhaps", "what": "x"})
    assert refused(wrong, 422, "invalid_request") == ["?what"]
    given = {"size": "900m", "since": "2020-01-01T00:00:00", "pinned": "perhaps", "cluster": "No Name"}
    wrong = client.get("/runs", params=given)
    assert set(refused(wrong, 422, "invalid_request")) == {"?size", "?since", "?pinned", "?cluster"}


def test_checkpoints_are_those_that_count(client: TestClient, run: dict[str, Any]) -> None:
    folder = Path(run["folder"]) / "checkpoints"
    path = f"/runs/{run['id']}/checkpoints"
    assert client.get(path).json() == {"folder": run["folder"], "seen": True, "items": []}
    marker = {"files": {"a": 3, "b": 4}, "time": 1795518302.5, "ranks": 2}
    for name, meta in (
        ("step-00000010-attempt-1", json.dumps(marker)),
        ("step-00000005-attempt-1", "no JSON"),
        ("step-00000007-attempt-1", '{"files": {"a": "x"}, "time": 1e300, "ranks": true}'),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "meta.json").write_text(meta)
    (folder / "step-00000011-attempt-1").mkdir()  # not complete
    told = client.get(path).json()["items"]
    assert [(one["step"], one["size"], one["ranks"], one["time"]) for one in told] == [
        (5, None, None, None),
        (7, None, None, None),
        (10, 7, 2, "2026-11-24T11:05:02.500000Z"),
    ]
    assert {one["attempt"] for one in told} == {1}
    (folder / "owner-2.json").write_text('{"attempt": 2, "resumed_from": 7}')
    assert [one["step"] for one in client.get(path).json()["items"]] == [5, 7]


def test_usage_is_shown_by_what_was_asked_for(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    plane.start(run["id"])
    told = client.get("/usage", params={"by": "size", "since": "2020-01-01T00:00:00Z"}).json()
    assert [(one["key"], one["runs"], one["attempts"]) for one in told["items"]] == [("tiny", 1, 1)]
    assert told["total"]["cpu_core_hours"] > 0
    assert (told["by"], told["since"], told["total"]["key"]) == ("size", "2020-01-01T00:00:00Z", None)
    assert client.get("/usage").json()["items"][0]["key"] == "local"
    for by in ("label:", "team", "label:a b", ""):
        reply = client.get("/usage", params={"by": by})
        assert refused(reply, 422, "invalid_request") == ["?by"]
        told = reply.json()["errors"][0]["detail"]
        assert told.startswith(f"got {by!r}; allowed: user, size, or label:KEY")
    backwards = {"since": "2026-02-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}
    assert refused(client.get("/usage", params=backwards), 422, "invalid_request") == ["?since"]


def test_stacks_are_those_in_the_runs_own_folder(client: TestClient, run: dict[str, Any], tmp_path: Path) -> None:
    faults, path = Path(run["folder"]) / "faults", f"/runs/{run['id']}/stacks"
    assert client.get(path).json() == {"folder": run["folder"], "seen": True, "items": []}
    faults.mkdir(parents=True)
    (tmp_path / "secret").write_text("of somebody else")
    (faults / "attempt-9-stacks.txt").symlink_to(tmp_path / "secret")
    (faults / "20260101-rank-0-memory.pickle").write_bytes(b"no stacks")
    for second, name in enumerate(("attempt-2-stacks.txt", "20260101-rank-0-stacks.txt")):
        (faults / name).write_text(f"== {name} \xff")
        os.utime(faults / name, (1795518302 + second,) * 2)
    told = client.get(path).json()["items"]
    assert [(one["file"], one["text"]) for one in told] == [
        ("attempt-2-stacks.txt", "== attempt-2-stacks.txt \xff"),
        ("20260101-rank-0-stacks.txt", "== 20260101-rank-0-stacks.txt \xff"),
    ]
    assert told[0]["time"] == "2026-11-24T11:05:02Z"


def test_null_takes_away_what_may_be_changed(client: TestClient, run: dict[str, Any]) -> None:
    path = f"/runs/{run['id']}"
    given = {
        "labels": {"team": "lm"},
        "notes": "x",
        "pinned": True,
        "limits": {"max_runtime_s": 60, "max_restarts": 9},
        "scheduling": {"priority": "high"},
    }
    first = client.patch(path, json=given).json()
    assert first["spec"]["scheduling"] == {"priority": "high"}
    gone = client.patch(path, json=dict.fromkeys(given)).json()
    assert (gone["labels"], gone["notes"], gone["pinned"]) == ({}, None, False)
    assert gone["spec"]["limits"] == {"max_runtime_s": None, "max_restarts": 3}
    assert gone["spec"]["scheduling"] == {}
    again = client.patch(path, json=dict.fromkeys(given)).json()
    assert again["revision"] == gone["revision"]
    assert client.patch(path, json={"scheduling": {"priority": None}}).json()["revision"] == gone["revision"]
