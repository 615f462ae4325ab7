"""What is done with a model where it lies: asked for over HTTP, done in a pod, handed back over HTTP."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from controlplane.services import metrics
from tests.controlplane.plane import Plane, serving


@pytest.fixture
def trained(plane: Plane, run: dict[str, Any]) -> dict[str, Any]:
    """A run on a cluster's storage that has published a checkpoint."""
    point = {"seq": 1, "step": 40, "time": 1.0, "checkpoint": 40}
    metrics.add_metrics(plane.context, run["id"], 1, [point])
    with plane.store.read() as session:
        session.connection().exec_driver_sql("UPDATE runs SET folder = 'pvc://runs/one'")
        session.commit()
    return run


def ask(client: TestClient, run: dict[str, Any], **body: Any) -> dict[str, Any]:
    reply = client.post(f"/v1/runs/{run['id']}/tasks", json=body)
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    return made


def packed(**files: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return held.getvalue()


def test_a_sample_is_a_run_of_one_pod_that_trains_nothing(
    client: TestClient, plane: Plane, trained: dict[str, Any]
) -> None:
    task = ask(client, trained, task="sample", prompt="--def main(", tokens=20, seed=1)
    assert (task["task"], task["task_of"], task["phase"]) == ("sample", trained["id"], "queued")
    plane.reconciler.step()
    manifest = client.get(f"/v1/runs/{task['id']}/manifest").json()
    (container,) = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
    out = trained["resolved"]["config"]["out"]
    assert container["command"][:5] == ["python", "-m", "teragpt.task", "sample", out]
    assert container["command"][5:] == [
        *("--tokens", "20", "--temperature", "0.6", "--top-k", "50", "--top-p", "0.95", "--seed", "1"),
        *("--", "--def main("),
    ]
    assert "Worker" not in manifest["spec"]["pytorchReplicaSpecs"]


def test_tasks_are_in_no_list_of_runs_and_are_found_by_their_id(client: TestClient, trained: dict[str, Any]) -> None:
    task = ask(client, trained, task="export")
    assert [one["id"] for one in client.get("/v1/runs").json()["items"]] == [trained["id"]]
    assert client.get(f"/v1/runs/{task['id']}").json()["name"] == task["name"]


def test_a_failed_task_is_not_tried_again(client: TestClient, plane: Plane, trained: dict[str, Any]) -> None:
    task = ask(client, trained, task="export")
    plane.start(task["id"])
    plane.cluster.end(client.get(f"/v1/runs/{task['id']}").json()["kubernetes"]["name"], 1)
    plane.reconciler.step()
    assert client.get(f"/v1/runs/{task['id']}").json()["phase"] == "failed"


def test_a_run_without_a_checkpoint_has_nothing_to_work_on(client: TestClient, run: dict[str, Any]) -> None:
    reply = client.post(f"/v1/runs/{run['id']}/tasks", json={"task": "export"})
    assert (reply.status_code, reply.json()["code"]) == (409, "no_checkpoint")


@pytest.mark.parametrize(
    "body",
    [{}, {"task": "train"}, {"task": "sample", "tokens": 0}, {"task": "sample", "top_p": 0}, {"task": "pull", "x": 1}],
)
def test_a_bad_task_is_refused(client: TestClient, trained: dict[str, Any], body: dict[str, Any]) -> None:
    assert client.post(f"/v1/runs/{trained['id']}/tasks", json=body).status_code == 422


def test_what_a_pod_hands_back_is_fetched_as_it_came(client: TestClient, plane: Plane, trained: dict[str, Any]) -> None:
    task = ask(client, trained, task="export")
    token, sent = plane.token(task["id"]), packed(model=b"w" * 3_000_000, config=b"{}")
    address = f"/v1/runs/{task['id']}/output"
    assert client.get(address).status_code == 404
    with serving(plane.app()) as url:
        pieces = (sent[at : at + 65_536] for at in range(0, len(sent), 65_536))
        reply = httpx.put(f"{url}{address}", content=pieces, headers={"Authorization": f"Bearer {token}"})
    assert reply.status_code == 204
    fetched = client.get(address)
    assert (fetched.headers["content-type"], fetched.content) == ("application/x-tar", sent)


@pytest.mark.parametrize("authorization", ["", "Bearer nonsense", "Basic x"])
def test_only_the_tasks_own_pod_hands_back(
    client: TestClient, trained: dict[str, Any], authorization: str, plane: Plane
) -> None:
    task = ask(client, trained, task="export")
    headers = {"Authorization": authorization} if authorization else {}
    reply = client.put(f"/v1/runs/{task['id']}/output", content=b"x", headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert not list((plane.home / "outputs").glob("*"))


def test_a_broken_upload_leaves_nothing(client: TestClient, plane: Plane, trained: dict[str, Any]) -> None:
    task = ask(client, trained, task="export")
    token = plane.token(task["id"])

    def breaks() -> Any:
        yield b"x" * 100_000
        raise OSError("the pod is gone")

    with serving(plane.app()) as url:
        address, headers = f"{url}/v1/runs/{task['id']}/output", {"Authorization": f"Bearer {token}"}
        with pytest.raises(OSError, match="the pod is gone"):
            httpx.put(address, content=breaks(), headers=headers)
    assert not list((plane.home / "outputs").glob("*"))
    assert client.get(f"/v1/runs/{task['id']}/output").status_code == 404


def test_a_task_that_is_called_by_its_name_is_the_same_task(
    client: TestClient, plane: Plane, trained: dict[str, Any]
) -> None:
    task = ask(client, trained, task="export")
    headers = {"Authorization": f"Bearer {plane.token(task['id'])}"}
    assert client.put(f"/v1/runs/{task['name']}/output", content=b"tar", headers=headers).status_code == 204
    assert client.get(f"/v1/runs/{task['id']}/output").content == b"tar"


def test_a_run_that_trains_hands_nothing_back(client: TestClient, trained: dict[str, Any]) -> None:
    assert client.get(f"/v1/runs/{trained['id']}/output").status_code == 404
