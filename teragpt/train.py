"""The trainer, from the first line to the last: join the world, build the mesh and the model, restore, loop, report.

`python teragpt/train.py`, `torchrun -m teragpt.train`, `python -m teragpt.launch -m teragpt.train` and
`teragpt.Trainer(size="tiny").train()` are the same job on one rank or on thousands. It knows nothing of the cluster.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

if not __package__:  # run as a file, which puts this folder first on the path, where the package's parent belongs
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
if __name__ == "__main__":
    gc.disable()  # imports make no garbage, and looking for it takes a quarter of their time

import torch
import torch.distributed as dist
from torch import Tensor

from teragpt.checkpoint import Checkpoint, Checkpoints, Superseded, as_begun, as_json
from teragpt.compiled import Compiled
from teragpt.compute.determinism import deterministic
from teragpt.config import ConfigError, Problem, parse, parse_spec, resolve
from teragpt.datasets.batches import Batch, Batches, to_device
from teragpt.datasets.packing import confine
from teragpt.health.agreement import agree
from teragpt.health.checkup import check_up
from teragpt.health.watch import Watch
from teragpt.launcher.environment import ranks_grace, read_attempt, read_grace, read_world
from teragpt.launcher.signals import FENCED, STOP, Requests
from teragpt.optimizers.optim import Optimizer, learning_rate
from teragpt.parallel import (
    build_model,
    compute_dtype,
    connect,
    evaluate,
    load_attribute,
    load_dataset,
    materialize,
    parallelize,
)
from teragpt.parallelism.mesh import build_mesh, memory_of, settled
from teragpt.reporting.metrics import Metrics
from teragpt.reporting.trackers import asked_for
from teragpt.step import Step
from teragpt.tokenization.tokenizer import Tokenizer

FINISHED, UNCONNECTED, BAD_CONFIG, DIVERGED, STOPPED = 0, 1, 2, 3, 143  # exit codes; any other is a crash
RANK_0_FIRST_S = 20.0  # a launcher ends the other ranks with rank 0, so what is wrong everywhere is said once
EXPLODED = 2.0  # a loss beyond this many times ln(vocabulary), which guessing costs, will not come back by itself


class Diverged(Exception):
    """The loss stayed non-finite or exploding after every rewind that the configuration allows."""


@dataclass
class Progress:
    """Where a run stands: optimizer `step`s done, batches `skipped` after divergences, and the `rewinds` it took."""

    step: int = 0
    skipped: int = 0
    rewinds: int = 0


class Trainer:
    """One rank's part of a training run. `settings` are those of `teragpt.config.Config`; the size derives the rest."""

    def __init__(self, settings: Mapping[str, object] | None = None, **more: object) -> None:
        """Check the settings and join the world that the environment describes. Raises ConfigError."""
        self.given = given = {**(settings or {}), **more}
        config = resolve(given)  # so that what is wrong whatever the data is refused before data is opened
        asked_for(config)
        self.world = read_world(os.environ, torch.cuda.device_count())
        self.constructor = load_attribute(config.model, "model")
        self.dataset = load_dataset(config.loader, config.data, config.tokenizer)
        self.config = resolve(given, self.dataset.vocabulary)
        if self.config.num_tokens < self.dataset.vocabulary:
            allowed = f"at least the dataset's vocabulary of {self.dataset.vocabulary}"
            raise ConfigError([Problem("num_tokens", self.config.num_tokens, allowed)])
        last = self.config.sequences - 1, self.config.sequences  # its sequence is there, or refused here
        self.dataset.batch(self.config.steps - 1, last[1], self.config.context, 0, *last)
        self.dataset.validation(1, self.config.context, 0, 1)
        self.requests = Requests(ranks_grace(read_grace(os.environ)), config.max_seconds)
        self.progress = Progress()

    def train(self) -> int:
        """Train to the last step, or until told to stop; returns the exit code. Raises ConfigError and Diverged."""
        with deterministic(self.config.deterministic), self.requests:
            self.device = connect(self.world, self.config.start_timeout)
            try:
                with Watch(self.world, self.config) as self.watch:
                    agree(self.config, self.dataset.fingerprint)
                    self.config = as_begun(self.config, self.given, self.dataset.vocabulary)
                    self.config = settled(self.config, self.given, self.device)
                    self.set_up()
                    try:
                        return self.loop()
                    finally:
                        self.metrics.close(self.requests.seconds_left)
            except Superseded as error:
                print(f"stopped: {error}", file=sys.stderr, flush=True)
                return STOPPED
            finally:
                dist.destroy_process_group()

    def set_up(self) -> None:
        """Lay out the model, and only then claim the run folder, take memory, and restore the last checkpoint."""
        config = self.config
        self.mesh = build_mesh(config, self.device, memory_of(self.device))
        dtype = compute_dtype(config, self.device)
        self.model = build_model(self.constructor, config, dtype)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        parallelize(self.model, self.mesh, config, dtype)
        confine(self.model, self.mesh, config, getattr(self.dataset, "end", None))
        self.checkpoints = Checkpoints(config, self.dataset.fingerprint, read_attempt(os.environ))
        self.compiled = Compiled(self.checkpoints.run, config, self.device.type)
        materialize(self.model, config, self.device)
        self.batches = Batches(self.batch, self.device)
        self.optimizer = Optimizer(self.model, self.mesh, config, dtype)
        self.advance = Step(self.model, self.mesh, config, self.optimizer, self.device)
        attempt, save = self.checkpoints.attempt, self.requests.save
        self.metrics = Metrics(config, attempt, self.world.rank, self.world.world_size, parameters, save)
        for line in check_up(config, self.world, self.device):
            self.metrics.say(line)
        if self.world.rank == 0:
            self.checkpoints.run.write("config.json", as_json(asdict(config)))
            if self.dataset.tokenizer:
                (self.checkpoints.run / "tokenizer").fill(Tokenizer(self.dataset.tokenizer).save)
        if self.checkpoints.start:
            self.restore(self.checkpoints.start)
            self.metrics.say(f"changed since then: {self.checkpoints.changes or 'nothing'}")
        if self.device.type == "cuda":
            self.checkpoints.prepare(self.state())
        self.compiled.wait()
        gc.enable()

    def loop(self) -> int:
        """Step until the run is over, with evaluations, checkpoints and rewinds on the way."""
        config, progress, checkpoints = self.config, self.progress, self.checkpoints
        if progress.step == 0:
            self.evaluate()
        elif progress.step >= config.steps and checkpoints.latest() is None:  # started from another run that is whole
            self.evaluate()
            self.save()
        while progress.step < config.steps:
            self.watch.beat()
            (loss, norm), asked = self.step()
            if not math.isfinite(loss + norm) or loss > EXPLODED * math.log(config.num_tokens):
                self.rewind(loss)
                continue
            progress.step += 1
            self.metrics.step(
                progress.step, loss, norm, learning_rate(progress.step - 1, config), self.optimizer.norms()
            )
            last = progress.step == config.steps
            if asked == FENCED:
                raise Superseded(f"a later attempt owns {config.out}")
            if last or progress.step % config.eval_every == 0:
                self.evaluate()
            if last or asked or progress.step % config.checkpoint_every == 0:
                self.save()
            if asked >= STOP and not last:
                return self.leave(STOPPED, f"stopped: told to at step {progress.step}; its checkpoint is written")
        return self.leave(FINISHED, f"finished {progress.step:,} steps | {config.out}")

    def leave(self, code: int, line: str) -> int:
        """Wait for the last publication, however long it takes, say the line, and return the code."""
        self.watch.close()
        self.checkpoints.finish()
        self.metrics.say(line)
        self.metrics.close(self.requests.seconds_left, finished=True)
        return code

    def step(self) -> tuple[tuple[float, float], float]:
        """One optimizer step: the global batch's loss and gradient norm, and what any rank asks of all.

        While the device computes, the host prepares the next batch.
        """
        progress, number = self.progress, self.progress.step + self.progress.skipped
        asked = FENCED if self.checkpoints.superseded() else self.requests.asked
        read = self.advance(progress.step, *self.batches.take(number), asked)
        self.batches.prepare(number + 1, self.config.steps - progress.step - 1)
        loss, norm, asked = read()
        return (loss, norm), asked

    def batch(self, number: int) -> Batch:
        """This rank's part of a batch of the run."""
        config, ranks, rank = self.config, self.mesh.data_ranks, self.mesh.data_rank
        batch: Batch = self.dataset.batch(number, config.sequences, config.context, config.seed, rank, ranks)
        return batch

    def evaluate(self) -> None:
        """Report the loss over the held-out sequences, and over those of each source of a mixture."""
        config, mesh, losses = self.config, self.mesh, {}
        for name, held_out in {"": self.dataset, **getattr(self.dataset, "sources", {})}.items():
            batch = held_out.validation(config.eval_sequences, config.context, mesh.data_rank, mesh.data_ranks)
            ids, targets = (to_device(tensor, self.device) for tensor in batch)
            share = evaluate(self.model, ids, targets, mesh, config)
            if self.world.world_size > 1:
                dist.all_reduce(share)
            losses[name] = share.item()
        self.metrics.evaluation(self.progress.step, losses.pop(""), losses)
        self.metrics.restart_clock()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds, placed on the mesh as it is: parameters and the optimizer's moments."""
        return {**dict(self.model.state_dict()), **self.optimizer.state()}

    def save(self) -> None:
        """Write a checkpoint in the background; an earlier one that failed is reported, and training goes on."""
        try:
            self.checkpoints.wait()
        except OSError as error:
            self.metrics.say(f"the last checkpoint could not be written: {error}")
        meta = {"progress": asdict(self.progress)}
        self.checkpoints.save(self.progress.step, self.state(), meta, self.metrics.checkpoint)
        self.requests.saved()
        if self.world.rank == 0:
            self.compiled.keep()
        self.metrics.restart_clock()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, whatever mesh it was written on."""
        self.checkpoints.load(checkpoint, self.state())
        self.progress.__dict__.update(checkpoint.meta["progress"])
        self.optimizer.resume(self.progress.step)
        self.metrics.say(f"resumed from step {self.progress.step} | {checkpoint.folder}")

    def rewind(self, loss: float) -> None:
        """Return to the last good checkpoint and pass over the batches since, or raise Diverged."""
        bad, rewinds, skipped = self.progress.step, self.progress.rewinds + 1, self.progress.skipped
        checkpoint = self.checkpoints.latest()
        if checkpoint is None or rewinds > self.config.max_rewinds:
            raise Diverged(f"loss {loss} at step {bad + 1} after {rewinds - 1} rewinds")
        self.metrics.say(f"loss {loss} at step {bad + 1}: rewinding, and passing over what came since")
        self.restore(checkpoint)
        self.progress.rewinds, self.progress.skipped = rewinds, skipped + bad + 1 - self.progress.step
        self.metrics.restart_clock()


def main(arguments: Iterable[str] | None = None) -> int:
    """Train with the settings of TERAGPT_SPEC and the command line, which wins; returns the exit code."""
    try:
        given = parse(sys.argv[1:] if arguments is None else arguments)
        return Trainer({**parse_spec(os.environ.get("TERAGPT_SPEC", "{}")), **given}).train()
    except ConfigError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(RANK_0_FIRST_S)
        print(f"error: {error}", file=sys.stderr, flush=True)
        return BAD_CONFIG
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr, flush=True)
        return DIVERGED
    except ConnectionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return UNCONNECTED


if __name__ == "__main__":
    sys.exit(main())
