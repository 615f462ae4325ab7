"""docs/install.md names values, files and steps that there are."""

from __future__ import annotations

import re

from tools import chart
from tools.blocks import ROOT

PAGE = (ROOT / "docs/install.md").read_text("utf-8")
SETTING = re.compile(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)+)(?:=[^`]*)?`")
SET = re.compile(r"--set ([a-zA-Z.]+)=")
FILE = re.compile(r"`?((?:deploy|helm|docs)/[\w./-]+)")


def test_every_value_on_the_page_is_one_of_the_charts() -> None:
    known = {path for path, _, _ in chart.leaves(chart.source())}
    prefixes = {path.rsplit(".", depth)[0] for path in known for depth in range(1, 4)}
    defaults = {f"podSecurityContext.{name}" for name in ("runAsUser", "runAsGroup", "fsGroup")}
    objects = {"global.imageRegistry", "nvidia.com", "constraints.txt", *defaults}
    named = {*SETTING.findall(PAGE), *SET.findall(PAGE)} - objects
    assert len(named) > 10
    assert not named - known - prefixes


def test_every_file_on_the_page_is_there() -> None:
    for path in FILE.findall(PAGE):
        assert (ROOT / path.rstrip(".")).exists(), path
