from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.spec import parse_spec
from controlplane.services.inputs import missing


def problems(**spec: Any) -> dict[str, str]:
    return {problem.pointer: problem.detail for problem in missing(parse_spec({"size": "tiny", **spec}))}


@contextmanager
def nobody() -> Iterator[None]:
    """For a moment someone whom permissions bind."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_spec_that_names_nothing_is_missing_nothing() -> None:
    assert problems() == {}


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert problems(checkpoint={"uri": str(tmp_path / "new" / "run")}) == {}
    assert f"({tmp_path}/file is a file)" in problems(checkpoint={"uri": f"{tmp_path}/file/run"})["/checkpoint/uri"]
    assert "too long" in problems(checkpoint={"uri": f"{tmp_path}/{'x' * 300}"})["/checkpoint/uri"]
    assert not (tmp_path / "new").exists()


def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o011)
    with nobody():
        for folder in (closed, closed / "run"):
            detail = problems(checkpoint={"uri": str(folder)})["/checkpoint/uri"]
            assert detail.startswith(f"got '{folder}'; allowed: a folder that can be made and written (")


def test_a_run_folder_elsewhere_is_not_looked_at() -> None:
    assert problems(checkpoint={"uri": "s3://bucket/runs"}) == {}


def test_a_run_starts_from_a_folder_with_a_checkpoint(tmp_path: Path) -> None:
    assert "(it holds none)" in problems(train={"start_from": str(tmp_path)})["/train/start_from"]
    assert "not absolute" in problems(train={"start_from": "runs/one"})["/train/start_from"]
    assert "too long" in problems(train={"start_from": f"/{'x' * 300}"})["/train/start_from"]
    checkpoint = tmp_path / "checkpoints" / "step-00000004-attempt-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "meta.json").write_text("{}")
    assert problems(train={"start_from": str(tmp_path)}) == problems(train={"start_from": str(checkpoint)}) == {}


@pytest.mark.parametrize("name", ["gpt2", "hf-internal-testing/llama-tokenizer"])
def test_a_tokenizer_may_be_any_name_that_a_hub_could_have(name: str) -> None:
    assert problems(train={"tokenizer": name}) == {}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/nowhere/at/all", "No such file"),
        ("/nowhere/tokenizer.json", "No such file"),
        ("tokenizer.json", "no name that a hub could have"),
        ("a/b/c", "no name that a hub could have"),
        ("two words", "no name that a hub could have"),
        (f"/{'x' * 300}", "too long"),
    ],
)
def test_a_tokenizer_that_cannot_be_there_is_refused(name: str, why: str) -> None:
    assert why in problems(train={"tokenizer": name})["/train/tokenizer"]
    assert problems(train={"tokenizer": name, "loader": "json:load"}) == {}  # which may call it anything


def test_a_tokenizer_file_that_is_cut_in_half_is_refused(tmp_path: Path) -> None:
    assert "the folder holds none" in problems(train={"tokenizer": str(tmp_path)})["/train/tokenizer"]
    file = tmp_path / "tokenizer.json"
    file.write_text('{"model": {"vocab": {"a": 0}}}')
    for name in (file, tmp_path):
        assert problems(train={"tokenizer": str(name)}) == {}
    file.write_text('{"model": {"vocab": {"a"')
    assert "the file is not whole" in problems(train={"tokenizer": str(file)})["/train/tokenizer"]


@pytest.mark.parametrize(
    "name",
    [
        "teragpt.model:TeraGPT",
        "teragpt:Trainer",  # made by the module's own __getattr__
        "xml.etree.ElementTree:parse",
        "math:sqrt",  # without source
        "transformers:LlamaForCausalLM",
        "nonsense",  # no module:attribute, which `resolve` says
    ],
)
def test_models_that_may_be_there_pass(name: str) -> None:
    loaded = set(sys.modules)
    assert problems(train={"model": name, "loader": name}) == {}
    assert {module.partition(".")[0] for module in set(sys.modules) - loaded}.isdisjoint({"torch", "transformers"})


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:Model", "there is no module no_such_module"),
        ("teragpt.no_such:Model", "there is no module teragpt.no_such"),
        ("json.decoder.deeper:Model", "there is no module json.decoder.deeper"),
        ("../x:Model", "there is no module ../x"),
        ("a..b:Model", "there is no module a..b"),
        ("teragpt.model:TerraGPT", "model.py has no TerraGPT"),
        ("teragpt.model:TeraGPT.forward", "model.py has no TeraGPT.forward"),
    ],
)
def test_models_that_cannot_be_found_are_refused(name: str, why: str) -> None:
    for setting in ("model", "loader"):
        detail = problems(train={setting: name})[f"/train/{setting}"]
        assert detail.startswith(f"got {name!r}; allowed: module:attribute of a module that can be imported (")
        assert why in detail


@pytest.mark.parametrize(
    ("source", "there"),
    [
        ("class Model: ...", True),
        ("def Model(): ...", True),
        ("Model = None", True),
        ("if 1:\n    from json import loads as Model", True),
        ("try:\n    import json as Model\nexcept ImportError:\n    pass", True),
        ("from json import *", True),
        ("globals()['Model'] = 1", True),
        ("import sys\nsys.modules[__name__] = object()", True),
        ("def make():\n    Model = 1", False),
        ("print(Model)", False),
        ("", False),
        ("def Model(:", False),
        ("# -*- coding: nonsense -*-", False),
    ],
)
def test_names_are_looked_up_in_the_source_and_nothing_is_run(tmp_path: Path, source: str, there: bool) -> None:
    (tmp_path / "own.py").write_text(f"{source}\nassert False\n" if there else source)
    path = [{"name": "PYTHONPATH", "value": f"/nowhere{os.pathsep}{tmp_path}"}]
    assert (problems(env=path, train={"model": "own:Model"}) == {}) is there
    assert "own" not in sys.modules


def test_packages_on_the_pods_own_path_are_found(tmp_path: Path) -> None:
    package = tmp_path / "outer" / "inner"
    package.mkdir(parents=True)  # a namespace package
    (package / "model.py").write_text("class Model: ...")
    path = [{"name": "PYTHONPATH", "value": str(tmp_path)}]
    assert problems(env=path, train={"model": "outer.inner.model:Model"}) == {}
    assert problems(env=path, train={"model": "outer.inner:anything"}) == {}
    assert "no module outer" in problems(train={"model": "outer.inner.model:Model"})["/train/model"]
