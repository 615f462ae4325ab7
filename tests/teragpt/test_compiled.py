from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from teragpt.compiled import NAME, Compiled
from teragpt.config import Config
from teragpt.storage import folder_at

COUNTERS: Any = counters


def double(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).sin()


def run_compiled() -> torch.Tensor:
    torch.compiler.reset()
    COUNTERS.clear()
    result: torch.Tensor = torch.compile(double)(torch.ones(8))
    return result


def test_what_one_attempt_compiled_the_next_one_takes_from_the_run_folder(tmp_path: Path) -> None:
    from torch._inductor.utils import fresh_cache

    run = folder_at(str(tmp_path), "out")
    with fresh_cache():
        attempt = Compiled(run, Config(compile="on"), "cpu")
        wanted = run_compiled()
        assert COUNTERS["inductor"]["fxgraph_cache_miss"] == 1
        attempt.keep()
    size = (tmp_path / NAME).stat().st_size
    with fresh_cache():  # another machine
        Compiled(run, Config(compile="on"), "cpu").wait()
        assert torch.equal(run_compiled(), wanted)
        counted = COUNTERS["inductor"]
        assert (counted["fxgraph_cache_hit"], counted["fxgraph_cache_miss"]) == (1, 0)
    attempt.keep()
    assert (tmp_path / NAME).stat().st_size == size
