"""Documentation is a contract: everything that a user can reach has a heading, and generated parts are fresh."""

from __future__ import annotations

import re

import typer

from controlplane.cli.app import app
from controlplane.settings import leaves
from teragpt.config import FIELDS
from teragpt.sizes import SIZES
from tools.blocks import ROOT, stale
from tools.reference import COUNTS, blocks, headings, short


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_generated_parts_are_fresh() -> None:
    assert stale(blocks()) == []


def test_every_setting_has_a_heading() -> None:
    assert {*FIELDS, *(leaf.flag for leaf in leaves())} <= headings(page("docs/settings.md"))


def test_every_size_is_in_the_tables() -> None:
    for name in SIZES:
        assert f"| `{name}` |" in page("README.md")
        assert f"| `{name}` |" in page("docs/sizes.md")


def test_every_command_has_a_heading_and_no_heading_is_left_over() -> None:
    root = typer.main.get_group(app)
    assert {f"teragpt {name}" for name in root.commands} == headings(page("docs/cli.md"))


def test_every_link_between_pages_leads_somewhere() -> None:
    for name in ("README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page(name)):
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"


def test_short_numbers_carry_over_into_the_next_unit() -> None:
    assert [short(number, COUNTS) for number in (999, 999_987_667_968, 123_588_864)] == ["999", "1 T", "124 M"]
