"""Every render is the one that was looked at, and what kubectl alone installs is the chart's."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helm import renders
from tests.helm.rendered import CASES, objects
from tools.blocks import ROOT

STALE = "look at the difference; if it is meant: python -m tests.helm.renders"


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    return renders.texts()


def test_every_render_is_the_golden_one(texts: dict[Path, str]) -> None:
    every = [path for folder in (renders.GOLDEN, renders.MANIFESTS) for path in (ROOT / folder).rglob("*")]
    kept = {path.relative_to(ROOT) for path in every if path.is_file()}
    assert kept == texts.keys(), STALE
    for path, content in texts.items():
        assert (ROOT / path).read_text("utf-8") == content, f"{path}: {STALE}"


def test_there_is_a_case_for_each_way_to_run_it() -> None:
    assert len(CASES) >= 15


def test_a_change_shows_in_a_golden_file() -> None:
    assert renders.changed("a: 1\nb: 2\nc: 3\n", "a: 1\nb: 2\nc: 4\n") == "@@\n a: 1\n b: 2\n-c: 3\n+c: 4\n"
    assert renders.changed("---\n", "") == "@@\n----\n"
    assert not renders.changed("a: 1\n", "a: 1\n")


@pytest.mark.parametrize("name", renders.RELEASES)
def test_manifests_for_kubectl_hold_the_releases_objects(name: str) -> None:
    made = [each for each in yaml.safe_load_all((ROOT / renders.MANIFESTS / name).read_text("utf-8")) if each]
    assert made == objects(renders.RELEASES[name], "--skip-tests", namespace="teragpt")
    assert {"Deployment", "Role", "Service"} <= {each["kind"] for each in made}
    assert "Pod" not in {each["kind"] for each in made}
