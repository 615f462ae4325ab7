from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from teragpt.health.agreement import differences, own_code
from teragpt.prepare.assembly import write
from teragpt.prepare.documents import Document, Recipe
from teragpt.tokenization.tokenizer import train_bpe
from tests.teragpt import ranks

A_RANK = """
import os, sys, torch
os.chdir(sys.argv.pop(1))
if os.environ["RANK"] == "1":
    torch.__version__ = "2.11.0+other"
from teragpt.train import main
sys.exit(main(sys.argv[1:]))
"""
NET = """
from layers_of_mine import head
from teragpt.model import TeraGPT

class Net(TeraGPT):
    head = head
"""


def test_what_differs_is_named_with_the_ranks_and_what_rank_0_has() -> None:
    facts = [{"torch": "2.15.0", "data": "a"}, {"torch": "2.15.0", "data": "b"}, {"torch": "2.15.0", "data": "b"}]
    assert [str(one) for one in differences(facts)] == [
        "data: got 'b'; allowed: 'a', as on rank 0; it differs on rank 1, 2"
    ]
    assert str(next(differences([{"seed": 1}] + [{"seed": 2}] * 9))).endswith("rank 1, 2, 3, 4, 5, 6, 7, 8, …")


def node(folder: Path, text: str) -> Path:
    """What a machine has of its own: a dataset, and a model in two modules, of which one is the same everywhere."""
    write([Document((text * 40,))] * 8, folder / "data", train_bpe(["def value"], 258), Recipe(validation=0.2))
    (folder / "net_of_mine.py").write_text(NET)
    (folder / "layers_of_mine.py").write_text(f"head = {text!r}\n")
    return folder


def test_ranks_that_differ_end_before_anything_is_written(tmp_path: Path) -> None:
    """Two ranks started by hand, as on two nodes that have nothing in common but the command."""
    one, other = node(tmp_path / "one", "def value(): return 1\n"), node(tmp_path / "other", "class Value: pass\n")
    shutil.copytree(ranks.ROOT / "teragpt", other / "teragpt", ignore=shutil.ignore_patterns("__pycache__"))
    changed = other / "teragpt" / "plan" / "memory.py"
    changed.write_text(changed.read_text() + "# another version\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words = ranks.arguments({**ranks.SMALL, "out": tmp_path / "run", "data": "data", "model": "net_of_mine:Net"})
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "PYTHONSAFEPATH": "1"}
    first, second = (
        ranks.start(
            ["-c", A_RANK, str(place), *words, "--seed", str(rank)],
            1,
            {**world, "RANK": str(rank), "PYTHONPATH": os.pathsep.join([str(place), str(ranks.ROOT)])},
        )
        for rank, place in enumerate((one, other))
    )
    said, silent = (process.communicate(timeout=ranks.PATIENCE_S)[0] for process in (first, second))
    assert (first.returncode, second.returncode) == (2, 2), said + silent
    (error,) = (line for line in said.splitlines() if line.startswith("error: "))
    told = error.removeprefix("error: ").split("; it differs on rank 1")
    named = [part.removeprefix("; ").partition(": got ")[0] for part in told]
    assert named == ["torch", "teragpt", "data", "seed", "code of layers_of_mine", ""]
    assert "error" not in silent
    assert not (tmp_path / "run").exists()


def test_a_users_code_is_what_lies_beside_its_module_and_nothing_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "package_of_mine").mkdir()  # without __init__.py, as many are
    (tmp_path / "package_of_mine" / "net.py").write_text("import beside_of_mine\n")
    for name in ("beside", "unused"):
        (tmp_path / f"{name}_of_mine.py").write_text("")
    __import__("package_of_mine.net")
    mine = {name: found for name, found in own_code("package_of_mine.net:Net").items() if "_of_mine" in name}
    assert sorted(mine) == ["code of beside_of_mine", "code of package_of_mine.net"]
    (tmp_path / "package_of_mine" / "net.py").write_text("import beside_of_mine  # changed\n")
    changed = own_code("package_of_mine.net:Net")
    assert [name for name, found in mine.items() if changed[name] != found] == ["code of package_of_mine.net"]
    assert own_code("teragpt.model:TeraGPT") == {}
    assert set(own_code("pytest_timeout:Settings")) == {"code of pytest_timeout"}
    for name in [name for name in sys.modules if "_of_mine" in name]:
        del sys.modules[name]
