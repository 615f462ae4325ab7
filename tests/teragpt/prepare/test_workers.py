from __future__ import annotations

import threading
from pathlib import Path

from teragpt.prepare.documents import Recipe
from teragpt.prepare.parts import Part
from teragpt.prepare.sources import blocks, find_sources
from teragpt.prepare.workers import Workers
from teragpt.tokenization.tokenizer import train_bpe


def test_workers_outlive_the_thread_that_started_them(tmp_path: Path) -> None:
    """The kernel would tell them of its end as of a parent's; one that began late then waited for a dead one's lock."""
    (tmp_path / "x.txt").write_text("some text\n", "utf-8")
    parts = tmp_path / "parts"
    parts.mkdir()
    recipe = Recipe()
    (block,) = blocks(find_sources([tmp_path / "x.txt"]), recipe)
    tokenizer = train_bpe(["some text\n"] * 10, 300)
    with Workers(2, parts, tokenizer, recipe) as workers:

        def make(name: str) -> None:
            assert workers.submit(Part(parts / name), block).result(60) == ()

        starter = threading.Thread(target=make, args=("first.npz",))
        starter.start()
        starter.join()
        make("second.npz")
    assert {path.name for path in parts.iterdir()} == {"first.npz", "second.npz"}
