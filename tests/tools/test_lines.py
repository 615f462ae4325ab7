from __future__ import annotations

from pathlib import Path

import pytest

from tools import lines, scc
from tools.blocks import ROOT, Block, stale


def test_model_and_train_stay_within_the_claim_however_they_are_counted() -> None:
    assert lines.count(*lines.PAPER) <= lines.CLAIM
    assert sum(len(scc.tokens((ROOT / file).read_bytes())) for file in lines.PAPER) <= lines.CLAIM


def test_readme_table_is_what_a_fresh_count_prints() -> None:
    assert not stale([Block("README.md", lines.NAME, lines.table(lines.written()))])


@pytest.mark.deep  # a training run, traced from the corpus on
def test_readme_states_the_lines_that_training_executes() -> None:
    # Which branches run depends a little on the machine: its cores, its GPUs, its free memory.
    assert abs(lines.measure() - lines.written()) <= 0.02 * lines.written()


def test_executed_lines_are_those_of_statements_that_ran(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        '@one(\n    2,\n)\ndef f():\n    """Doc."""\n    return [\n        1,\n    ]\n\n\n'
        "if f():\n    x = 1\nelse:\n    x = 2\n"
    )
    assert lines.executed(file, {1, 11, 12}) == {1, 2, 3, 4, 11, 12}
    assert lines.executed(file, {7}) == {6, 7, 8}
