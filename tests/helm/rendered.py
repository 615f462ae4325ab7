"""The chart as Helm renders it. Without a Helm on this machine the tests that need one are skipped, and say so."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.helm.binary import CACHE
from tools.blocks import ROOT

CHART = ROOT / "helm/teragpt"
CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
CRDS = ("kubeflow.org/v1/PyTorchJob", "trainer.kubeflow.org/v1alpha1/TrainJob")

Values = Mapping[str, Any]

Manifest = dict[str, Any]


def script(name: str) -> ModuleType:
    """A script that the chart runs in a pod, as a module."""
    spec = importlib.util.spec_from_file_location(name, CHART / f"files/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def helm(
    *arguments: str, given: str = "", program: str = "helm", timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """What a call of Helm answers; `program` helm4 is Helm 4."""
    binary = shutil.which(program, path=str(CACHE / "bin")) or shutil.which(program)
    if binary is None:
        pytest.skip(f"no {program} here: `python -m tests.helm.binary` builds it, with Go")
    return subprocess.run(
        [binary, *arguments], input=given, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT
    )


@lru_cache(maxsize=256)
def _template(values: str, release: str, namespace: str, more: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    where = ("--namespace", namespace, "--values", "-", *more)
    return helm("template", release, str(CHART), *where, given=values)


def text(values: Values | None = None, *more: str, release: str = "teragpt", namespace: str = "ml") -> str:
    """Everything that a release would apply."""
    answer = _template(json.dumps(values or {}), release, namespace, more)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def refusal(values: Values) -> str:
    """What Helm says to values that it refuses."""
    answer = _template(json.dumps(values), "teragpt", "ml", ())
    assert answer.returncode, "these values were taken"
    return answer.stderr


def objects(values: Values | None = None, *more: str, **where: str) -> list[Manifest]:
    """The objects of a release."""
    return [one for one in yaml.safe_load_all(text(values, *more, **where)) if one]


def one(kind: str, values: Values | None = None, *more: str, name: str = "", **where: str) -> Manifest:
    """The one object of a kind."""
    found = [
        each
        for each in objects(values, *more, **where)
        if each["kind"] == kind and name in {"", each["metadata"]["name"]}
    ]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    """The specification of every pod that they would make."""
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            yield manifest["spec"]["template"]["spec"]


def environment(values: Values | None = None, **where: str) -> dict[str, str]:
    """The control plane's variables that have a value."""
    container = one("Deployment", values, **where)["spec"]["template"]["spec"]["containers"][0]
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def notes(folder: Path, values: Values | None = None, *more: str) -> str:
    """What Helm would tell after an install. Only an install shows that, so a copy of the chart in `folder` says it."""
    chart = folder / "teragpt"
    shutil.copytree(CHART, chart)
    (chart / "templates/NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates/notes.yaml").write_text(
        'kind: Notes\ntext: |\n{{ tpl (.Files.Get "notes.txt") . | indent 2 }}\n'
    )
    where = ("--namespace", "ml", "--values", "-", "--show-only", "templates/notes.yaml", *more)
    answer = helm("template", "teragpt", str(chart), *where, given=json.dumps(values or {}))
    assert answer.returncode == 0, answer.stderr
    return str(yaml.safe_load(answer.stdout)["text"])
