"""Data in, model out, through an object store: an S3 server of this machine's, which the pods reach by its address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teragpt.prepare.corpus import embedded_dataset
from teragpt.storage import Bucket
from tests.cluster.conftest import Cluster, Namespace
from tests.cluster.plane import Plane, until
from tests.teragpt import stores

HOME = f"s3://{stores.BUCKET}"
STEPS = 80
CANARY = "s3cret-word"
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")  # by reference alone
KILL = "for each in /proc/[0-9]*; do ! grep -qz ^LOCAL_RANK= $each/environ || kill -9 ${each#/proc/}; done"


@pytest.fixture(scope="module")
def store(cluster: Cluster) -> Iterator[dict[str, str]]:
    """The variables that lead to a server with an empty bucket, in this process too."""
    with stores.s3(cluster.host_address) as there, pytest.MonkeyPatch.context() as patch:
        environ = {**there, SECRETS[1]: CANARY}  # which this server does not look at
        for name, value in environ.items():
            patch.setenv(name, value)
        yield environ


@pytest.fixture(scope="module")
def server(
    cluster: Cluster, furnished: Namespace, store: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plane]:
    """A control plane whose runs lie in the store unless they say otherwise, with their credentials in a Secret."""
    given = (f"--from-literal={each}={store[each]}" for each in SECRETS)
    furnished.kubectl("create", "secret", "generic", "store", *given)
    plain = [{"name": name, "value": value} for name, value in store.items() if name not in SECRETS]
    env = [*plain, *({"name": each, "secret_ref": {"name": "store", "key": each}} for each in SECRETS)]
    settings = {
        "cluster": "kubernetes",
        "kubeconfig": str(cluster.kubeconfig),
        "namespace": furnished.name,
        "image": cluster.image,
        "storage": f"{HOME}/runs",
        "run_defaults": json.dumps({"env": env}),
    }
    made = Plane(tmp_path_factory.mktemp("plane") / "home", cluster.host_address, settings)
    yield made
    made.stop()


def teragpt(plane: Plane, *words: str, code: int = 0) -> str:
    """What the command prints on a laptop, which knows the control plane and nothing of the store; or why it fails."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    token = (plane.home / "token").read_text().strip()
    environment = {**others, "TERAGPT_URL": plane.url, "TERAGPT_TOKEN": token}
    command = [sys.executable, "-m", "controlplane.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.mark.timeout(600)  # a run of two attempts, three tasks and a purge
@pytest.mark.usefixtures("store")
def test_a_run_reads_its_data_from_a_store_writes_to_it_is_killed_goes_on_and_is_used_from_a_laptop(
    plane: Plane, furnished: Namespace, tmp_path: Path
) -> None:
    corpus = embedded_dataset()
    for path in filter(Path.is_file, corpus.rglob("*")):
        folder = "/".join([f"{HOME}/data", *path.relative_to(corpus).parts[:-1]])
        Bucket(folder).write(path.name, path.read_bytes())
    spec: dict[str, Any] = {
        "size": "tiny",
        "train": {"steps": STEPS, "eval_every": STEPS, "log_every": 1},
        "data": {"uri": f"{HOME}/data"},
        "checkpoint": {"uri": f"{HOME}/mine/one", "every_steps": 10},
        "limits": {"max_restarts": 1},
    }
    run = plane.client.create(spec)["id"]
    until(lambda: plane.client.run(run)["checkpoint_step"], 180, lambda: str(plane.client.run(run)))
    furnished.kubectl("exec", furnished.pods(run)[1], "--", "sh", "-c", KILL)
    done = plane.wait(run, "succeeded")
    first, second = plane.client.attempts(run)
    assert (len(done["resolved"]["claims"]), done["restarts"], first["reason"]) == (0, 1, "Killed")
    assert (second["resumed_from"] or 0) >= 10
    points = [point for point in plane.client.metrics(run) if "loss" in point]
    assert [point["step"] for point in points] == list(range(1, STEPS + 1))
    assert {point["attempt"] for point in points if point["step"] > second["resumed_from"]} == {2}
    assert done["checkpoint_step"] == STEPS

    assert teragpt(plane, "sample", run, "import ", "--tokens", "5").startswith("import ")
    teragpt(plane, "export", run, str(tmp_path / "model"))
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "model").iterdir()}
    teragpt(plane, "pull", run, str(tmp_path / "copy"))
    assert teragpt(plane, "sample", str(tmp_path / "copy"), "import ", "--tokens", "5").startswith("import ")
    told = json.dumps([done, plane.client.manifest(run), plane.client.events(run)])
    assert CANARY not in told + plane.log.read_text()


@pytest.mark.usefixtures("store")
def test_a_run_in_the_installations_store_is_purged_with_its_objects(plane: Plane) -> None:
    spec = {"size": "tiny", "train": {"steps": 4, "eval_every": 4}, "compute": {"nodes": 1, "processes_per_node": 1}}
    run = plane.client.create(spec)["id"]
    plane.wait(run, "succeeded")
    folder = Bucket(f"{HOME}/runs/{run}")
    assert "checkpoints" in folder.entries()
    teragpt(plane, "delete", run)
    assert teragpt(plane, "purge", run, "--yes").splitlines()[-1] == "removed for good"
    assert folder.entries() == {}


TEXTS = """
from pathlib import Path
from teragpt.tokenization.tokenizer import train_bpe
line = "the cat sat on the mat\\n"
train_bpe([line], 300).save(Path("/claim/tokenizer"))
Path("/claim/texts").mkdir()
for number in range(120):
    Path(f"/claim/texts/{number}.txt").write_text(f"{number}: " + line * 20_000)
for number in range(20):  # a minute of work
    Path(f"/claim/texts/long-{number}.txt").write_text(line * 900_000)
"""


@pytest.mark.timeout(300)  # three preparations, the first of them cancelled, and a run
@pytest.mark.usefixtures("store")
def test_a_dataset_is_prepared_from_a_laptop_of_a_claim_and_a_store_and_a_run_uses_it(
    plane: Plane, furnished: Namespace, cluster: Cluster
) -> None:
    furnished.start("texts", "python", "-c", TEXTS, image=cluster.image, claim=True)
    Bucket(f"{HOME}/texts").write("one.jsonl", json.dumps({"text": "the mat sat on the cat\n" * 10_000}).encode())
    furnished.output("texts")
    claim = f"pvc://{furnished.claim}"
    out, tokenizer = f"{claim}/datasets/cats", ["--tokenizer", f"{claim}/tokenizer", "--workers", "1"]
    asked = {"sources": [f"{claim}/texts"], "tokenizer": f"{claim}/tokenizer", "compute": {"cpus_per_node": 1}}
    first = plane.client.prepare({**asked, "out": out})["id"]
    parts = "/claim/datasets/.cats.partial/parts"
    furnished.start("look", "sleep", "600", claim=True)
    furnished.wait("pod/look", "condition=Ready")
    look = ("exec", "look", "--", "sh", "-c", f"ls {parts}; ls /claim/datasets")
    until(lambda: ".npz\n" in furnished.kubectl(*look) or None, 60, lambda: str(plane.client.run(first)))
    plane.client.cancel(first)
    plane.wait(first, "cancelled", timeout_s=30)
    assert "cats" not in furnished.kubectl(*look).splitlines(), "no half-made dataset is there"
    furnished.kubectl("exec", "look", "--", "sh", "-c", "rm /claim/texts/long-*")
    again = plane.client.retry(first)["id"]
    plane.wait(again, "succeeded")
    assert "train: " in plane.client.logs(again)
    told = teragpt(plane, "prepare", f"{HOME}/texts/*.jsonl", "-o", f"{HOME}/datasets/mats", *tokenizer, "--on-cluster")
    assert "train: 1 document, " in told
    assert f"next: teragpt run SIZE --data {HOME}/datasets/mats" in told
    taken = teragpt(plane, "prepare", f"{claim}/texts/1.txt", "-o", out, *tokenizer, code=5)
    assert "a dataset is there: remove it or name another" in taken
    settings: dict[str, Any] = {"steps": 2, "eval_every": 2, "context": 32}
    data = {"sources": [{"uri": out, "weight": 1}, {"uri": f"{HOME}/datasets/mats", "weight": 1}]}
    spec = {"size": "tiny", "train": settings, "data": data, "compute": {"nodes": 1, "processes_per_node": 1}}
    plane.wait(plane.client.create(spec)["id"], "succeeded")
