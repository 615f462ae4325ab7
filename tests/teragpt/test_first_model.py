"""The notebook of docs/, executed cell by cell in one process, with fewer steps than a reader waits for."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.teragpt import forks
from tests.teragpt.forks import ROOT

SHORTER = {
    "steps=200": "steps=2, depth=1, eval_sequences=4",
    "evaluate(run)": 'evaluate(run, "", 4)',
    "tokens=100": "tokens=8",
}


def test_the_notebook_goes_from_text_to_a_sampled_model_in_ten_cells(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "docs" / "first-model.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 10
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    script = "\n\n".join(cells)
    for given, shorter in SHORTER.items():
        assert given in script
        script = script.replace(given, shorter)
    (tmp_path / "cells.py").write_text(f"import os\nos.chdir({str(ROOT / 'docs')!r})\n{script}", "utf-8")
    code, said = forks.run([str(tmp_path / "cells.py")], 1, {**os.environ, "TMPDIR": str(tmp_path)}, 120)
    assert code == 0, said
    assert "held-out loss" in said
    assert "bits a byte over" in said
    assert said.rpartition(" bytes\n")[2]  # what follows the prompt
