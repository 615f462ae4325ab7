from __future__ import annotations

from pathlib import Path
from xml.dom.minidom import parseString

import pytest

from tools.blocks import ROOT
from tools.figures import FIGURES, FOLDER, main


def test_the_figures_in_the_docs_are_what_the_code_draws() -> None:
    assert main(["--check"]) == 0


def test_a_missing_or_changed_figure_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], tmp_path) == 1
    assert main(["--write"], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    changed = tmp_path / FOLDER / "tp.svg"
    changed.write_text(changed.read_text().replace("#4e79a7", "#000000"))
    capsys.readouterr()
    assert main(["--check"], tmp_path) == 1
    assert capsys.readouterr().err == "docs/figures/tp.svg is stale; run: python -m tools.figures --write\n"
    assert main([]) == 2


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_small_whole_and_shown_on_the_page(name: str) -> None:
    text = FIGURES[name]()
    assert len(text) < 200_000
    assert parseString(text).getElementsByTagName("svg")  # noqa: S318 - our own
    assert f"(figures/{name}.svg)" in (ROOT / "docs" / "scaling.md").read_text()


def test_context_parallel_ranks_have_equal_work() -> None:
    said = FIGURES["cp"]()
    assert said.count("8 squares of work") == 4
