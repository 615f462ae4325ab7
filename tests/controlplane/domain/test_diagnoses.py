"""Every stable word that the code can give has its row, and what the rows recommend exists."""

from __future__ import annotations

import ast
import inspect
import re

import pytest
import typer
from pydantic import BaseModel

from controlplane.cli.app import app
from controlplane.domain.diagnoses import DIAGNOSES, UNLISTED, diagnose
from controlplane.domain.spec import RunSpec
from controlplane.settings import leaves
from teragpt.config import FIELDS
from teragpt.launcher.termination import REASONS, SIGNS
from tools.blocks import ROOT

WORD = re.compile(r"[A-Z][a-z]+(?:[A-Z]+[a-z]*)*")
GIVERS = [  # where reasons of runs, attempts and pods are born
    "teragpt/launcher/termination.py",
    "controlplane/domain/sweeps.py",
    "controlplane/domain/chains.py",
    "controlplane/domain/queues.py",
    *(f"controlplane/reconcile/{name}.py" for name in ("verdicts", "decide", "apply", "outbox", "line")),
    *(f"controlplane/clusters/kubernetes/{name}.py" for name in ("endings", "waiting", "observer", "records")),
    *(f"controlplane/clusters/local/{name}.py" for name in ("pod", "shim", "cluster")),
]
OTHERS = {  # of the same form, and no reason of ours: phases, kinds, Kubernetes' words that ours are made of
    *("Pending", "Running", "Succeeded", "Failed", "Complete", "True", "False", "PodScheduled", "DisruptionTarget"),
    *("PyTorchJob", "TrainJob", "Job", "LocalPod"),
    *("DeletionByPodGC", "DeletionByTaintManager", "EvictionByEvictionAPI", "PreemptionByScheduler"),
    *("TerminationByKubelet", "NodeAffinity", "NodeShutdown", "Preempting", "Terminated"),
    *("ErrImageNeverPull", "ErrImagePull", "InvalidImageName", "RegistryUnavailable", "Pulling"),
    *("FailedAttachVolume", "FailedCreatePod", "FailedCreatePodSandBox", "FailedMount"),
}


@pytest.mark.parametrize("module", GIVERS)
def test_every_reason_that_the_code_can_give_has_a_row(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text("utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {text for text in texts if WORD.fullmatch(text)} - OTHERS <= DIAGNOSES.keys()


def test_every_reason_of_the_launcher_has_a_row() -> None:
    assert {*REASONS.values(), *SIGNS, "Crash", "BadData"} <= DIAGNOSES.keys()


def test_a_row_says_a_cause_and_a_mend_in_a_sentence_each() -> None:
    for reason, row in {**DIAGNOSES, "": UNLISTED}.items():
        for sentence in row:
            assert sentence[0].isupper() or sentence.startswith("`"), reason
            assert sentence.endswith("."), reason
            assert "|" not in sentence, reason


def test_what_a_row_recommends_exists() -> None:
    commands = getattr(typer.main.get_command(app), "commands", {})
    flags = {leaf.flag for leaf in leaves()} | {"--phase", "--preview", "--rank"}
    sections: dict[str, type[BaseModel]] = {
        name: field.annotation
        for name, field in RunSpec.model_fields.items()
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
    }
    for row in DIAGNOSES.values():
        text = " ".join(row)
        assert set(re.findall(r"`teragpt (\w+)", text)) <= {*commands}
        assert set(re.findall(r"--[a-z-]+", text)) <= flags
        for section, name in re.findall(rf"\b({'|'.join(sections)})\.(\w+)", text):
            assert name in sections[section].model_fields
        assert set(re.findall(r"(?<!\.)\b[a-z]+_[a-z_]+\b", text)) <= {*FIELDS, "pod_overrides", "node_selector"}


def test_a_word_of_the_clusters_own_leads_to_the_cluster() -> None:
    assert diagnose("SomethingNew") == UNLISTED
