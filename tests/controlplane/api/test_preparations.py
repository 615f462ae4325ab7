"""Datasets that pods make: asked for over HTTP, refused before anything is made, run as any run is."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.controlplane.plane import Plane

ASKED = {"sources": ["pvc://texts/books/**/*.jsonl", "hf://datasets/one/two/*.parquet"], "tokenizer": "one/two"}
BODY: dict[str, Any] = {**ASKED, "out": "pvc://datasets/books", "near_duplicates": 0.8, "template": "{a}\n{b}"}


@pytest.fixture
def afar(plane: Plane) -> Plane:
    """A control plane whose pods see claims, and not this machine's folders."""
    plane.cluster.shown = replace(plane.cluster.shown, shared_folders=False)
    plane.cluster.claims = {name: frozenset({"ReadWriteMany"}) for name in ("texts", "datasets", "tokenizers")}
    return plane


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    reply = client.post("/v1/preparations", json={**BODY, **body})
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/v1/runs/{made['id']}"
    return made


def refused(client: TestClient, **body: Any) -> dict[str, str]:
    """What is wrong by its field, and that no run was made."""
    reply = client.post("/v1/preparations", json={**BODY, **body})
    assert reply.status_code == 422, reply.text
    assert client.get("/v1/runs").json()["items"] == []
    return {one["pointer"]: one["detail"] for one in reply.json()["errors"]}


def container(client: TestClient, run: str) -> dict[str, Any]:
    manifest = client.get(f"/v1/runs/{run}/manifest").json()
    template = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    (found,) = template["containers"]
    return {**found, "volumes": template["volumes"]}


@pytest.mark.usefixtures("afar")
def test_a_preparation_is_a_run_of_one_pod_with_the_claims_of_its_sources(client: TestClient, plane: Plane) -> None:
    made = ask(client, tokenizer="pvc://tokenizers/mine", compute={"cpus_per_node": 3}, limits={"max_restarts": 1})
    assert (made["task"], made["task_of"], made["size"]) == ("prepare", None, "")
    assert (made["folder"], made["resolved"]["nodes"]) == ("pvc://datasets/books", 1)
    assert [one["id"] for one in client.get("/v1/runs").json()["items"]] == [made["id"]]
    plane.reconciler.step()
    pod = container(client, made["id"])
    assert pod["command"][:3] == ["python", "-m", "teragpt.prepare"]
    assert {
        "--out=/mnt/teragpt/datasets/books",
        "--tokenizer=/mnt/teragpt/tokenizers/mine",
        "--workers=3",
        "--template={a}\n{b}",
        "--near-duplicates=0.8",
    } <= {*pod["command"]}
    assert pod["command"][-3:] == ["--", "/mnt/teragpt/texts/books/**/*.jsonl", ASKED["sources"][1]]
    claims = [one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "persistentVolumeClaim" in one]
    assert claims == ["datasets", "texts", "tokenizers"]
    for part in ("plan", "checkpoints", "explanation", "stacks", "pods", "attempts", "metrics"):
        assert client.get(f"/v1/runs/{made['id']}/{part}").status_code == 200, part
    told = client.get(f"/v1/runs/{made['id']}/events").json()["items"][0]["message"]
    assert told == "local asked for the dataset pvc://datasets/books"


@pytest.mark.usefixtures("afar")
def test_a_plain_name_lies_in_the_installations_storage(client: TestClient, plane: Plane) -> None:
    assert "/out" in refused(client, out="books")
    object.__setattr__(plane.context, "storage", "pvc://datasets/runs")
    assert ask(client, out="books")["folder"] == "pvc://datasets/runs/datasets/books"


@pytest.mark.usefixtures("afar")
@pytest.mark.parametrize(
    ("body", "pointer", "said"),
    [
        ({"sources": []}, "/sources", "allowed: 1 or more entries"),
        ({"sources": ["-"]}, "/sources/0", "got '-'; allowed: pvc://CLAIM/PATH, or a URL"),
        ({"sources": ["s3://x/y", "/home/me/text"]}, "/sources/1", "got '/home/me/text'; allowed: pvc://CLAIM/PATH"),
        ({"sources": ["file:///etc/passwd"]}, "/sources/0", "allowed: pvc://CLAIM/PATH"),
        ({"sources": ["https://me:secret@host/x"]}, "/sources/0", "without credentials"),
        ({"sources": ["pvc://texts/../x"]}, "/sources/0", "without empty parts"),
        ({"sources": ["pvc://gone/x"]}, "/sources/0", "got 'gone'; allowed: a claim of the namespace"),
        ({"tokenizer": "/home/me/tok"}, "/tokenizer", "allowed: a name that a hub could have, or pvc://CLAIM/PATH"),
        ({"tokenizer": "pvc://gone/tok"}, "/tokenizer", "got 'gone'; allowed: a claim of the namespace"),
        ({"out": "/data/books"}, "/out", "got '/data/books'; allowed: pvc://CLAIM/PATH"),
        ({"out": "pvc://gone/books"}, "/out", "got 'gone'; allowed: a claim of the namespace"),
        ({"out": "pvc://datasets"}, "/out", "a folder below the claim's root"),
        ({"validation": 1.0}, "/validation", "a share from 0 up to, not including, 1"),
        ({"format": "xml"}, "/format", "got 'xml'"),
        ({"bad_input": "x"}, "/bad_input", "'fail' or 'skip'"),
        ({"compute": {"nodes": 2}}, "/compute/nodes", "got 2; allowed: nothing"),
        ({"compute": {"gpus_per_node": 1}}, "/compute/gpus_per_node", "got 1; allowed: nothing"),
        ({"compute": {"cpus_per_node": 4000}}, "/compute/cpus_per_node", "allowed: what fits"),
        ({"limits": {"max_silence_s": 599}}, "/limits/max_silence_s", "got 599; allowed: at least 600"),
        ({"compute": {"cluster": "none"}}, "/compute/cluster", "allowed: the installation's clusters"),
        ({"size": "tiny"}, "/size", "there is no such field"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    client: TestClient, body: dict[str, Any], pointer: str, said: str
) -> None:
    assert said in refused(client, **body)[pointer]


@pytest.mark.usefixtures("afar")
def test_two_do_not_prepare_the_same_at_once(client: TestClient) -> None:
    first = ask(client)
    reply = client.post("/v1/preparations", json=BODY)
    assert (reply.status_code, reply.json()["code"]) == (409, "folder_in_use")
    assert first["id"] in reply.json()["detail"]


@pytest.mark.usefixtures("afar")
def test_the_same_key_gives_the_same_preparation(client: TestClient) -> None:
    replies = [client.post("/v1/preparations", json=BODY, headers={"Idempotency-Key": "one"}) for _ in range(2)]
    assert [one.status_code for one in replies] == [201, 200]
    assert replies[0].json()["id"] == replies[1].json()["id"]


@pytest.mark.usefixtures("afar")
def test_a_preparation_that_failed_is_tried_again_as_it_was(client: TestClient, plane: Plane) -> None:
    made = ask(client, limits={"max_restarts": 0})
    plane.start(made["id"])
    plane.cluster.end(client.get(f"/v1/runs/{made['id']}").json()["kubernetes"]["name"], 1)
    plane.reconciler.step()
    assert client.get(f"/v1/runs/{made['id']}").json()["phase"] == "failed"
    again = client.post(f"/v1/runs/{made['id']}/retry").json()
    assert (again["retry_of"], again["task"], again["folder"]) == (made["id"], "prepare", made["folder"])
    plane.reconciler.step()
    assert container(client, again["id"])["command"] == container(client, made["id"])["command"]
    reply = client.post(f"/v1/runs/{made['id']}/clone", json={})
    assert (reply.status_code, reply.json()["code"]) == (409, "not_training")


@pytest.mark.usefixtures("afar")
def test_one_that_finds_its_predecessor_still_at_it_is_tried_again(client: TestClient, plane: Plane) -> None:
    made = ask(client)
    name = plane.start(made["id"])
    said = "error: out: got '/mnt/x'; allowed: a folder that no other process is preparing at this moment"
    plane.cluster.pod(name, phase="Failed", exit_code=1, reason="Error", message=said)
    plane.reconciler.step()
    plane.reconciler.step()
    attempts = client.get(f"/v1/runs/{made['id']}/attempts").json()["items"]
    assert attempts[0]["reason"] == "DatasetBusy"
    assert client.get(f"/v1/runs/{made['id']}").json()["phase"] == "restarting"
    assert "DatasetBusy" in client.get(f"/v1/runs/{made['id']}/explanation").text


@pytest.mark.usefixtures("afar")
@pytest.mark.parametrize(
    ("limits", "longest"), [({}, 3600), ({"max_silence_s": 600}, 600)], ids=["unless_given", "given"]
)
def test_one_that_writes_no_line_for_long_is_ended_and_tried_again(
    client: TestClient, plane: Plane, limits: dict[str, Any], longest: float
) -> None:
    made = ask(client, limits=limits)
    name = plane.start(made["id"])
    now = time.time()
    plane.reconciler._clock = lambda: now
    for _ in range(4):
        now += 0.8 * longest
        plane.write(name, "prepare: 1.0 MB, 0.10 MB/s\n")
        plane.reconciler.step()
        assert client.get(f"/v1/runs/{made['id']}").json()["phase"] == "running"
    now += 1.2 * longest
    plane.reconciler.step()
    (attempt,) = client.get(f"/v1/runs/{made['id']}/attempts").json()["items"]
    assert attempt["reason"] == "HangDetected"


def test_here_what_is_not_on_this_machine_and_a_place_that_is_taken_are_refused(
    client: TestClient, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "kept").touch()
    here = {"sources": [str(tmp_path)], "tokenizer": "gpt2"}
    assert "something is there" in refused(client, **here, out=str(tmp_path / "taken"))["/out"]
    gone = {**here, "sources": [str(tmp_path / "gone")], "out": "books"}
    assert "no such file" in refused(client, **gone)["/sources/0"]
    tokenizer = {**here, "tokenizer": str(tmp_path / "none.json"), "out": "books"}
    assert "No such file" in refused(client, **tokenizer)["/tokenizer"]
    assert "allowed: an absolute path" in refused(client, **here, out="pvc://claim/x")["/out"]
    assert (
        "allowed: an absolute path" in refused(client, **{**here, "sources": ["pvc://x/y"]}, out="books")["/sources/0"]
    )


def test_a_task_of_a_run_is_no_run_to_try_again(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    with plane.store.read() as session:
        session.connection().exec_driver_sql("UPDATE runs SET task = 'sample', task_of = 'run_1', phase = 'failed'")
        session.commit()
    reply = client.post(f"/v1/runs/{run['id']}/retry")
    assert (reply.status_code, reply.json()["code"]) == (409, "not_training")
