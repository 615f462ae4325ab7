from __future__ import annotations

from pathlib import Path

import pytest

from tools.blocks import Block, main, stale, write

PAGE = "# Page\n\n<!-- part -->\nold\n<!-- /part -->\n\nThe end.\n"


def test_write_replaces_what_stands_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE, "utf-8")
    block = Block("page.md", "part", "new")
    assert stale([block], tmp_path) == [block]
    write([block], tmp_path)
    assert (tmp_path / "page.md").read_text("utf-8") == PAGE.replace("old", "new")
    assert stale([block], tmp_path) == []


def test_a_page_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"page\.md has no <!-- part -->"):
        Block("page.md", "part", "new").applied("# Page\n")


def test_check_names_the_stale_part_and_how_to_mend_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([Block("README.md", "sizes", "something else")], ["--check"], "tools.some") == 1
    assert "README.md: `sizes` is stale; run: python -m tools.some --write" in capsys.readouterr().err


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], ["--chek"], "tools.some") == 2
    assert "usage" in capsys.readouterr().err


def test_without_options_the_texts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([Block("README.md", "sizes", "a table")], [], "tools.some") == 0
    assert capsys.readouterr().out == "a table\n"
