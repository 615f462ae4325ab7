from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tools import scc
from tools.blocks import ROOT

SNIPPETS = {  # what scc 3.5.0 said of each
    '"""It stands alone."""\n': 0,
    '"""It doesn\'t matter."""\n': 1,
    '"""Lines.\n\nIt doesn\'t matter.\nMore "quoted" text\n"""\nx = 1\n': 2,
    "x = 1\n\n# comment\ny = 2  # with a comment\n": 2,
    'def f():\n    """Ends."""; y = 2\n    z = \'it\' # x\'s\n    return """a\n\n    # c\n    """\n': 7,
    'x = {"a": \'b"\', \'c\': "it\'s"}\n    r"""Raw."""\n    R"""not."""\n': 2,
    'x = 1\n"""no newline at the end"""': 2,
    'x = 1\n"""no newline\nat the end\n"""': 2,
    "x = 1\n# no newline": 1,
    's = "a \\\n  b"\ny = "\\\\"  # c\n': 3,
    '"x"\n"""doc"""\n""\n""""""\n': 3,
    '"""\nabc\n""" + x\ny = 1\n': 2,
    "": 0,
    "\n": 0,
}


@pytest.mark.parametrize(("text", "expected"), SNIPPETS.items())
def test_counts_what_scc_counts(text: str, expected: int) -> None:
    assert len(scc.lines(text.encode())) == expected


def test_equals_the_real_scc_on_every_file_here(tmp_path: Path) -> None:
    if not shutil.which("scc"):
        pytest.skip("scc is not on PATH; .ci/run installs it")
    snippets = [tmp_path / f"s{number}.py" for number in range(len(SNIPPETS))]
    for path, text in zip(snippets, SNIPPETS, strict=True):
        path.write_text(text, "utf-8")
    folders = ["teragpt", "controlplane", "tools", "tests", str(tmp_path)]
    options = ["--by-file", "--format", "json", "--no-gitignore", "--include-ext", "py"]
    printed = subprocess.run(["scc", *options, *folders], cwd=ROOT, check=True, capture_output=True, text=True)
    theirs = {file["Location"]: file["Code"] for language in json.loads(printed.stdout) for file in language["Files"]}
    assert len(theirs) > len(SNIPPETS)
    assert {place: len(scc.lines((ROOT / place).read_bytes())) for place in theirs} == theirs


def test_the_tokenizer_leaves_out_comments_docstrings_and_blank_lines() -> None:
    text = '"""It doesn\'t\n\nmatter."""\n\nx = 1  # one\n# none\ny = [\n    2,\n]\n\n\n'
    text += 'def f():\n    """Doc."""\n    return """\n"""\n'
    assert scc.tokens(text.encode()) == {5, 7, 8, 9, 12, 14, 15}
