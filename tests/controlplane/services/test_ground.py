"""What is found out of a cluster before a run exists: its storage, and that it may be silent."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.base import Traits, Unavailable
from controlplane.domain.defaults import parse_defaults
from controlplane.domain.errors import InvalidSpec
from controlplane.domain.spec import parse_spec
from controlplane.services import attempts, ground, runs
from controlplane.services.context import Context
from controlplane.submission import settings
from tests.controlplane.memory_cluster import MemoryCluster

MANY, ONE = frozenset({"ReadWriteMany"}), frozenset({"ReadWriteOnce"})


@pytest.fixture
def volumes(context: Context, memory: MemoryCluster) -> Context:
    """An installation on a cluster whose pods see claims alone."""
    memory.shown = Traits(kinds=("PyTorchJob", "Job"), shared_folders=False, audience="teragpt")
    object.__setattr__(context, "storage", "pvc://runs/all")
    memory.claims = {"runs": MANY, "single": ONE}
    return context


def test_a_size_alone_takes_two_nodes_where_both_can_write(volumes: Context) -> None:
    run = ground.fitting(volumes, parse_spec({"size": "tiny"}), "run_1")
    assert (run.layout.nodes, run.folder, run.claims) == (2, "pvc://runs/all/run_1", ("runs",))
    assert run.config["out"] == "/mnt/teragpt/runs/all/run_1"


def test_and_one_where_only_one_can(volumes: Context, memory: MemoryCluster) -> None:
    memory.claims["runs"] = ONE
    assert ground.fitting(volumes, parse_spec({"size": "tiny"}), "run_1").layout.nodes == 1


def test_several_nodes_that_were_asked_for_need_a_claim_that_they_can_share(volumes: Context) -> None:
    spec = parse_spec({"size": "tiny", "compute": {"nodes": 2}, "checkpoint": {"uri": "pvc://single/x"}})
    with pytest.raises(InvalidSpec, match="which is ReadWriteOnce; allowed on 2 nodes: ReadWriteMany"):
        ground.fitting(volumes, spec, "run_1")


@pytest.mark.parametrize(("field", "pointer"), [("data", "/data/uri"), ("checkpoint", "/checkpoint/uri")])
def test_a_claim_that_is_not_there_is_named_with_its_field(volumes: Context, field: str, pointer: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        ground.fitting(volumes, parse_spec({"size": "tiny", field: {"uri": "pvc://none/x"}}), "run_1")
    (problem,) = refused.value.problems
    assert (problem.pointer, problem.code) == (pointer, "no_such_claim")


@pytest.mark.parametrize(("found", "problems"), [("2.14.1+cpu", 1), ("2.15.0", 0), ("", 0)])
def test_products_that_this_machines_torch_cannot_compute_are_told_before_it_is_asked(
    context: Context, memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch, found: str, problems: int
) -> None:
    train = {"precision": "fp8", "fp8_recipe": "rowwise"}
    spec = parse_spec({"size": "tiny", "train": train, "compute": {"gpus_per_node": 0}})
    monkeypatch.setattr(ground, "_torch", lambda: found)
    told = ground.laid_out(context, spec, "run_1")[1]
    assert [one.pointer for one in told] == ["/train/fp8_recipe"] * problems
    context.laid_out.clear()
    memory.shown = Traits(shared_folders=False)
    object.__setattr__(context, "storage", "pvc://runs/all")
    told = ground.laid_out(context, spec, "run_1")[1]
    assert "/train/fp8_recipe" not in [one.pointer for one in told], "nobody knows the torch of an image"


def test_the_installations_defaults_reach_every_run(volumes: Context) -> None:
    given = {"compute": {"image_pull_secrets": ["registry"]}, "env": [{"name": "HTTPS_PROXY", "value": "http://p"}]}
    object.__setattr__(volumes, "defaults", parse_defaults(given))
    run = ground.fitting(volumes, parse_spec({"size": "tiny"}), "run_1")
    assert run.placement.image_pull_secrets == ["registry"]
    assert run.env == {"HTTPS_PROXY": "http://p"}


def test_the_vocabulary_of_data_that_only_pods_see_is_left_to_the_trainer(volumes: Context) -> None:
    far = {"size": "124m", "data": {"uri": "pvc://runs/books"}, "compute": {"nodes": 1, "gpus_per_node": 0}}
    assert "num_tokens" not in settings(ground.laid_out(volumes, parse_spec(far), "run_1")[0])
    given = {**far, "train": {"num_tokens": 70_000}}
    assert settings(ground.laid_out(volumes, parse_spec(given), "run_1")[0])["num_tokens"] == 70_000
    assert "num_tokens" in settings(ground.laid_out(volumes, parse_spec({"size": "tiny"}), "run_1")[0])


def test_a_silent_cluster_keeps_nobody_from_asking_for_a_run(volumes: Context, memory: MemoryCluster) -> None:
    memory.fail = Unavailable("no route")
    run, _ = runs.create_run(volumes, parse_spec({"size": "tiny"}))
    assert (run.phase, run.kubernetes["kind"], run.resolved["nodes"]) == ("queued", "PyTorchJob", 2)


def test_without_storage_a_run_must_name_its_own(volumes: Context) -> None:
    object.__setattr__(volumes, "storage", "")
    with pytest.raises(InvalidSpec, match="/checkpoint/uri"):
        ground.fitting(volumes, parse_spec({"size": "tiny"}), "run_1")


def test_a_run_lives_in_the_namespace_that_it_names_with_the_claims_there(
    volumes: Context, memory: MemoryCluster
) -> None:
    memory.shown = dataclasses.replace(memory.shown, others=("team-a", "team-b"))
    memory.claims |= {"team-a/runs": ONE}
    run, _ = runs.create_run(volumes, parse_spec({"size": "tiny", "kubernetes": {"namespace": "team-a"}}))
    assert run.kubernetes["namespace"] == "team-a"
    assert run.resolved["nodes"] == 1, "its claim is another than that of the first namespace"
    assert attempts.manifest(volumes, run.id)["metadata"]["namespace"] == "team-a"
    plain, _ = runs.create_run(volumes, parse_spec({"size": "tiny"}))
    assert (plain.kubernetes["namespace"], plain.resolved["nodes"]) == ("default", 2)
    with pytest.raises(InvalidSpec, match="allowed: a claim of the namespace team-b"):
        ground.fitting(volumes, parse_spec({"size": "tiny", "kubernetes": {"namespace": "team-b"}}), "run_1")


def test_a_namespace_that_is_not_the_installations_is_refused_with_those_that_are(volumes: Context) -> None:
    with pytest.raises(InvalidSpec, match=r"got 'kube-system'; allowed: .*namespaces of runs, default") as refused:
        ground.fitting(volumes, parse_spec({"size": "tiny", "kubernetes": {"namespace": "kube-system"}}), "run_1")
    assert [problem.pointer for problem in refused.value.problems] == ["/kubernetes/namespace"]


def test_a_run_comes_after_another_where_that_ones_claim_is(volumes: Context, memory: MemoryCluster) -> None:
    memory.shown = dataclasses.replace(memory.shown, others=("team-a",))
    memory.claims |= {"team-a/runs": MANY}
    first, _ = runs.create_run(volumes, parse_spec({"size": "tiny", "kubernetes": {"namespace": "team-a"}}))
    later = {"size": "tiny", "after": first.id, "train": {"steps": 1_000_000}}
    with pytest.raises(InvalidSpec, match="got default; allowed: team-a, where the claim of that run's checkpoint is"):
        runs.create_run(volumes, parse_spec(later))
    there, _ = runs.create_run(volumes, parse_spec({**later, "kubernetes": {"namespace": "team-a"}}))
    assert there.after == first.id


def publish(run: Path, step: int, config: dict[str, Any]) -> Path:
    """A checkpoint as the trainer leaves it, as far as the control plane reads one."""
    folder = run / "checkpoints" / f"step-{step:08d}-attempt-1"
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(b"weights")
    (folder / "meta.json").write_text(json.dumps({"config": config, "files": {"__0_0.distcp": 7}}))
    return folder


def refusals(context: Context, **spec: Any) -> list[tuple[str, str]]:
    _, problems = ground.laid_out(context, parse_spec({"size": "tiny", **spec}), "run_1")
    return [(one.pointer, one.detail) for one in problems]


@pytest.mark.parametrize("named", ["/checkpoint/uri", "/train/start_from"])
def test_a_run_that_a_checkpoint_here_does_not_fit_is_refused_before_it_is_there(
    context: Context, tmp_path: Path, named: str
) -> None:
    run = tmp_path / "earlier"
    publish(run, 9, {"dim": 8})
    last = publish(run, 10, ground.fitting(context, parse_spec({"size": "tiny"}), "run_1").config)

    def told(folder: Path, **train: Any) -> list[tuple[str, str]]:
        section, _, name = named[1:].partition("/")
        spec = {"train": train, section: {name: str(folder)}} if section != "train" else {"train": train}
        spec["train"] |= {"start_from": str(folder)} if section == "train" else {}
        context.laid_out.clear()
        return refusals(context, **spec)

    assert told(run, steps=20) == []
    ((pointer, detail),) = told(run, dim=64, optimizer="muon")
    assert pointer == named
    assert detail == (
        f"got '{run}', whose checkpoint has dim 128 and not 64, head_dim 64 and not 32, optimizer 'adamw' and not "
        "'muon'; allowed: one of the run's own shape and optimizer"
    )
    (last / "__0_0.distcp").write_bytes(b"weight")
    ((_, detail),) = told(run)
    assert f"({last}/__0_0.distcp has 6 of 7 bytes)" in detail
    (last / "__0_0.distcp").unlink()
    ((_, detail),) = told(run)
    assert f"({last}/__0_0.distcp: No such file or directory)" in detail
    (last / "meta.json").write_text("half")
    assert told(run) == []  # what it does not say is the trainer's to refuse


def test_a_checkpoint_folder_itself_may_be_named_and_is_looked_at(context: Context, tmp_path: Path) -> None:
    folder = publish(tmp_path, 4, {**ground.fitting(context, parse_spec({"size": "tiny"}), "run_1").config, "depth": 2})
    ((pointer, detail),) = refusals(context, train={"start_from": str(folder)})
    assert (pointer, "depth 2 and not 3;" in detail) == ("/train/start_from", True)


def test_a_vocabulary_that_only_a_loader_knows_is_not_compared(context: Context, tmp_path: Path) -> None:
    config = ground.fitting(context, parse_spec({"size": "tiny"}), "run_1").config
    publish(tmp_path, 4, {**config, "num_tokens": 999})
    train = {"start_from": str(tmp_path)}
    assert [pointer for pointer, _ in refusals(context, train=train)] == ["/train/start_from"]
    assert refusals(context, train={**train, "loader": "teragpt.data:open_dataset"}) == []
