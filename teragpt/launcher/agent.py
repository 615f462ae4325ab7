"""torchrun's elastic agent, called in process: its options, its rendezvous, its environment for every rank.

The agent places and starts the ranks; watching and stopping them is the supervisor's. Imports torch, so the launcher
imports this late. Nothing here restarts a rank: an attempt that fails ends, and the control plane starts the next.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import re
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, determine_local_world_size, get_args_parser, parse_min_max_nnodes

from teragpt.compute.compatibility import known_to
from teragpt.config import ConfigError, Problem
from teragpt.launcher.environment import MAX_PORT

LEASH = Path(__file__).with_name("leash.py")
OTHERS_S = 1200  # for nodes whose ranks have not ended: rank 0 may wait for the control plane
LAST_S = timedelta(seconds=10)  # for nodes that have all met in the barrier


class Watcher(Protocol):
    """What the agent needs of the one who watches its ranks."""

    def pipes(self, numbers: Sequence[int]) -> list[str]:
        """Files that the ranks of these global numbers shall print to."""
        ...

    def started(self, pids: Sequence[int]) -> None:
        """The ranks of the last `pipes` run now, as these processes."""

    def succeeded(self) -> bool | None:
        """Whether every rank did; None while one lives."""

    def end(self) -> None:
        """Stop the ranks and wait until none lives."""


def run(arguments: Sequence[str], watcher: Watcher) -> None:
    """Bring the nodes together, start this node's ranks, and wait until all nodes' have ended.

    Raises ConfigError on bad options, SystemExit on `-h`, torch's errors when the nodes do not come together.
    """
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.WARNING)  # the agent's remarks, which would stand between the ranks' lines
    config, program, rest = read_options(arguments)
    handler = get_rendezvous_handler(
        RendezvousParameters(
            backend=config.rdzv_backend,
            endpoint=config.rdzv_endpoint,
            run_id=config.run_id,
            min_nodes=config.min_nodes,
            max_nodes=config.max_nodes,
            local_addr=config.local_addr,
            **config.rdzv_configs,
        )
    )
    spec = WorkerSpec(
        **known_to(WorkerSpec, vars(config)),
        local_world_size=config.nproc_per_node,
        rdzv_handler=handler,
        entrypoint=sys.executable,
        args=("-I", "-S", str(LEASH), str(os.getpid()), program, *rest),
    )
    assert config.logs_specs is not None, "LaunchConfig fills it in"
    try:
        Agent(spec, Console(config.logs_specs, watcher), watcher, config.log_line_prefix_template).run()
    finally:
        handler.shutdown()


def read_options(arguments: Sequence[str]) -> tuple[LaunchConfig, str, list[str]]:
    """torchrun's options from the command line and PET_*: configuration, program, its arguments. Raises ConfigError."""
    parser = get_args_parser()
    parser.prog = "python -m teragpt.launch"

    def refuse(message: str) -> NoReturn:
        raise ConfigError([Problem("options", " ".join(arguments), f"{message}; {parser.prog} -h lists them")])

    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_args(list(arguments))
    problems = list(refused(options))
    if problems:
        raise ConfigError(problems)
    within_one_node(options)
    quiet = not (options.log_dir or options.local_ranks_filter) and options.redirects == options.tee == "0"
    options.log_dir = os.devnull if quiet else options.log_dir  # else torchrun leaves a folder behind for nothing
    options.run_path = False  # it would run the script in a process that nothing ties to the launcher
    try:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads(options.nproc_per_node)))
        config, program, rest = config_from_args(options)
    except (ValueError, AssertionError, OSError) as error:
        raise ConfigError([Problem("options", " ".join(arguments), str(error))]) from error
    return config, str(program), rest


def refused(options: argparse.Namespace) -> Iterator[Problem]:
    """What torchrun would take and then hang, crash or go wrong on; and what a launcher must not do here."""
    try:
        least, nodes = parse_min_max_nnodes(options.nnodes)
    except (ValueError, RuntimeError):
        least, nodes = 0, 0
    count = options.nproc_per_node
    rules = {
        "nnodes": (1 <= least == nodes, "a whole number from 1; an attempt's nodes don't change"),
        "nproc_per_node": (not re.fullmatch(r"-\d+|0+", count), "a whole number from 1, or auto, cpu, gpu"),
        "node_rank": (0 <= options.node_rank < max(nodes, 1), f"a whole number below nnodes {options.nnodes}"),
        "master_port": (1 <= (options.master_port or 1) <= MAX_PORT, "a port from 1 to 65535"),
        "max_restarts": (options.max_restarts == 0, "0: restarts belong to the control plane"),
    }
    for name, (good, allowed) in rules.items():
        if not good:
            yield Problem(f"PET_{name.upper()} (--{name.replace('_', '-')})", getattr(options, name), allowed)


def within_one_node(options: argparse.Namespace) -> None:
    """As torchrun does: one node with no port given meets on a free one; other nodes on 29500."""
    alone = options.nnodes in {"1", "1:1"} and options.rdzv_backend == "static" and not options.rdzv_endpoint
    if options.standalone or (alone and options.master_port is None):
        options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id = "c10d", "localhost:0", uuid.uuid4().hex
        options.local_addr = options.local_addr or "localhost"  # a machine's own name need not resolve
    options.master_port = options.master_port or 29500


def threads(nproc_per_node: str) -> int:
    """Threads of one rank: its part of the cores. torchrun takes 1, which leaves the rest idle where CPUs train."""
    count: int = determine_local_world_size(nproc_per_node)
    return max(1, cores() // count)


def cores(limit: str = "/sys/fs/cgroup/cpu.max") -> int:
    """CPU cores that this process may use: those it may run on, and not more than its control group's quota."""
    here = len(os.sched_getaffinity(0))
    try:
        quota, period = Path(limit).read_text("utf-8").split()
    except (OSError, ValueError):
        return here
    return here if quota == "max" else min(here, max(1, math.ceil(int(quota) / int(period))))


class Agent(LocalElasticAgent):
    """The agent with the supervisor's eyes: it acts on its ranks' ends only when all of them have ended."""

    def __init__(self, spec: WorkerSpec, logs: LogsSpecs, watcher: Watcher, prefix: str | None) -> None:
        super().__init__(spec, logs, exit_barrier_timeout=OTHERS_S, log_line_prefix_template=prefix)
        self.watcher = watcher

    # torch decorates these methods with one that hides their types from pyright.

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        pids: dict[int, Any] = super()._start_workers(worker_group)  # pyright: ignore[reportCallIssue]
        self.watcher.started([pids[local_rank] for local_rank in sorted(pids)])
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:  # pyright: ignore[reportIncompatibleVariableOverride]
        match self.watcher.succeeded():
            case None:
                return RunResult(WorkerState.HEALTHY)
            case False:
                return RunResult(WorkerState.FAILED)
            case True:
                return RunResult(WorkerState.SUCCEEDED, {worker.global_rank: None for worker in worker_group.workers})

    def _restart_workers(self, worker_group: WorkerGroup) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        del worker_group
        raise RuntimeError("another node came after the ranks had started: restarts belong to the control plane")

    def _exit_barrier(self) -> None:
        super()._exit_barrier()  # type: ignore[no-untyped-call]
        # The node that hosts the store goes last: another's wait on it would break off and fill its log with errors.
        store: Any = self._store
        here: Any = self._worker_group
        gone = [f"gone/{node}" for node in range(1, here.group_world_size)]
        with contextlib.suppress(DistError):
            if here.group_rank > 0:
                store.set(gone[here.group_rank - 1], "")
            elif gone:
                store.wait(gone, LAST_S)

    def _shutdown(self, *arguments: Any, **options: Any) -> None:
        self.watcher.end()
        super()._shutdown(*arguments, **options)


class Console(LogsSpecs):
    """Where ranks print: to `files` as the options say; where torchrun would use the console, to the supervisor."""

    def __init__(self, files: LogsSpecs, watcher: Watcher) -> None:
        super().__init__()
        self.files, self.watcher = files, watcher

    @property
    def root_log_dir(self) -> str:
        """The folder of the files."""
        return self.files.root_log_dir

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """The destinations for the ranks with these environments, by local rank."""
        places = self.files.reify(envs)
        pipes = self.watcher.pipes([int(envs[local_rank]["RANK"]) for local_rank in sorted(envs)])
        for local_rank, pipe in zip(sorted(envs), pipes, strict=True):
            places.stdouts[local_rank] = places.stdouts[local_rank] or pipe
            places.stderrs[local_rank] = places.stderrs[local_rank] or pipe
        if self.root_log_dir == os.devnull:
            places.tee_stdouts, places.tee_stderrs = {}, {}
        return places
