"""What torch compiled, kept in the run folder, so that the next attempt need not compile it again.

What is kept of another torch, GPU or code has other keys, and is not taken. It knows neither model nor loop.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import torch

from teragpt.config import Config
from teragpt.parallel import compiles
from teragpt.storage import Folder

NAME = "compiled.bin"


class Compiled:
    """The compilations of a run, as an earlier attempt has kept them; where nothing is compiled there are none.

    They are loaded in a thread, and the compiler with them, which takes seconds, while weights are drawn.
    """

    def __init__(self, run: Folder, config: Config, device: str) -> None:
        self.run, self.keeps = run, compiles(config, device)
        pool = ThreadPoolExecutor(1, thread_name_prefix="compiled")
        self.recalled = pool.submit(self.recall) if self.keeps else None
        pool.shutdown(wait=False)

    def recall(self) -> None:
        """Load what is kept."""
        import_module("torch._inductor.compile_fx")
        if NAME in self.run.entries():
            torch.compiler.load_cache_artifacts(self.run.read(NAME))

    def wait(self) -> None:
        """Until they are loaded. Raises OSError."""
        if self.recalled is not None:
            self.recalled.result()

    def keep(self) -> None:
        """Write what this process has compiled, once."""
        found = torch.compiler.save_cache_artifacts() if self.keeps else None
        if found is not None:
            self.run.write(NAME, found[0])
        self.keeps = False
