"""Where people look at curves: TensorBoard's event files always, W&B and MLflow when a run asks for them.

All carry the names of the record, `metrics.jsonl`. One thread of rank 0 does all of it, imports included: training
waits for none of it, and a tracker that fails is told of once and left out. They know points, and not what made them.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from tempfile import gettempdir
from typing import Any, Protocol

from teragpt.config import TRACKERS, Config, ConfigError, Problem
from teragpt.reporting.events import EventFile
from teragpt.storage import Disk, Folder

KEPT = "trackers.json"  # in the run folder: what each service calls this run
PROJECT = "teragpt"  # and experiment, unless the service's own variable names one
LONGEST_PARAMETER = 6000  # characters, MLflow's


class Tracker(Protocol):
    """Takes points in one thread; its methods raise whatever they like."""

    def add(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Take the values of a step."""
        ...

    def publish(self) -> None:
        """Show what has been taken."""
        ...

    def close(self, *, whole: bool) -> None:
        """Take no more; the run has reached its last step if it is `whole`."""
        ...


def asked_for(config: Config) -> list[str]:
    """The services that the settings ask for. Raises ConfigError where a package is missing."""
    names = [name.strip() for name in config.trackers.split(",") if name.strip()]
    for name in names:
        if find_spec(name) is None:
            allowed = f"one whose package is installed: pip install 'teragpt[{name}]'"
            raise ConfigError([Problem("trackers", config.trackers, allowed)])
    return names


class Trackers:
    """The trackers of one attempt at a run."""

    def __init__(self, config: Config, folder: Folder, attempt: int, say: Callable[[str], None]) -> None:
        self.say, self.whole, self.steps = say, False, config.steps
        services = dict(zip(TRACKERS, (WandB, MLflow), strict=True))
        self.opening: dict[str, Callable[[], Tracker]] = {"TensorBoard's file": lambda: EventFile(folder, attempt)}
        for name in asked_for(config):
            self.opening[name] = lambda make=services[name]: make(config, folder)  # type: ignore[misc]
        self.queue: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self.run, name="trackers", daemon=True)
        self.thread.start()

    def add(self, point: Mapping[str, Any]) -> None:
        """Pass on a point of the record; returns at once."""
        values = {name: value for name, value in point.items() if name not in {"seq", "attempt", "step", "time"}}
        known = {name: float(value) for name, value in values.items() if value is not None}
        self.whole = self.whole or ("loss" in known and point["step"] == self.steps)
        if known:
            self.queue.put(lambda tracker: tracker.add(point["step"], point["time"], known))

    def publish(self) -> None:
        """Have what was added shown; returns at once."""
        self.queue.put(lambda tracker: tracker.publish())

    def close(self, seconds: float) -> None:
        """Wait up to `seconds` for all that was added."""
        self.queue.put(None)
        self.thread.join(max(0.0, seconds))

    def run(self) -> None:
        """The thread."""
        there: dict[str, Tracker] = {}
        for name, make in self.opening.items():
            self.attempt(name, lambda name=name, make=make: there.__setitem__(name, make()), there)  # type: ignore[misc]
        while (work := self.queue.get()) is not None:
            for name, tracker in list(there.items()):
                self.attempt(name, lambda work=work, tracker=tracker: work(tracker), there)  # type: ignore[misc]
        for name, tracker in list(there.items()):
            self.attempt(name, lambda tracker=tracker: tracker.close(whole=self.whole), there)  # type: ignore[misc]

    def attempt(self, name: str, work: Callable[[], None], there: dict[str, Tracker]) -> None:
        """Do it; leave out a tracker that fails."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever a service's package raises, the run goes on
            there.pop(name, None)
            self.say(f"{name} gets no more of this run's metrics: {type(error).__name__}: {error}")


class Forward:
    """What goes forward only: services keep what they were told, so a step that is run again is not told again."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}

    def newer(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """The values that were not told of this step or a later one."""
        found = {name: value for name, value in values.items() if step > self.last.get(name, -1)}
        self.last |= dict.fromkeys(found, step)
        return found


class WandB(Forward):
    """A W&B run, the same for every attempt. Its own variables say where, as whom, and whether offline."""

    def __init__(self, config: Config, folder: Folder) -> None:
        super().__init__()
        import wandb

        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True)
        known = kept(folder).get("wandb")
        name = known or secrets.token_hex(4)
        self.session = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=name,
            name=title(config),
            resume="allow",
            config=asdict(config),
            allow_val_change=True,
            dir=folder.path if isinstance(folder, Disk) else gettempdir(),
            settings=settings,
        )
        self.top = int(self.session.step) - 1 if known else -1  # it counts the next one
        keep(folder, "wandb", name)

    def add(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """See Tracker. W&B takes steps in order alone, so what comes late, a checkpoint, goes to the newest step."""
        del time
        if found := self.newer(step, values) if step > self.top or "checkpoint" in values else {}:
            self.top = max(step, self.top)
            self.session.log(found, step=self.top)

    def publish(self) -> None:
        """See Tracker: W&B does it by itself."""

    def close(self, *, whole: bool) -> None:
        """See Tracker."""
        self.session.finish(exit_code=0 if whole else 1)


class MLflow(Forward):
    """An MLflow run, the same for every attempt. MLFLOW_TRACKING_URI says where."""

    def __init__(self, config: Config, folder: Folder) -> None:
        super().__init__()
        from mlflow import MlflowClient

        self.client: Any = MlflowClient()
        known = kept(folder).get("mlflow")
        self.known, self.run = known is not None, known or self.begin(config)
        self.client.update_run(self.run, status="RUNNING")
        keep(folder, "mlflow", self.run)

    def begin(self, config: Config) -> str:
        """A new run with the settings as its parameters."""
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        run = str(self.client.create_run(experiment, run_name=title(config)).info.run_id)
        settings = asdict(config).items()
        self.client.log_batch(run, params=[Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in settings])
        return run

    def add(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """See Tracker."""
        from mlflow.entities import Metric

        for name in values.keys() - self.last.keys() if self.known else ():
            self.last[name] = max((one.step for one in self.client.get_metric_history(self.run, name)), default=-1)
        found = self.newer(step, values).items()
        self.client.log_batch(self.run, [Metric(name, value, int(time * 1000), step) for name, value in found])

    def publish(self) -> None:
        """See Tracker: each point is shown as it comes."""

    def close(self, *, whole: bool) -> None:
        """See Tracker."""
        self.client.set_terminated(self.run, "FINISHED" if whole else "KILLED")


def title(config: Config) -> str:
    """What people call a run: its folder."""
    return Path(config.out).name


def kept(folder: Folder) -> dict[str, str]:
    """What the services call this run, as far as they know it."""
    with suppress(FileNotFoundError):
        found: dict[str, str] = json.loads(folder.read(KEPT))
        return found
    return {}


def keep(folder: Folder, service: str, name: str) -> None:
    """Keep what a service calls this run."""
    if (known := kept(folder)).get(service) != name:
        folder.write(KEPT, json.dumps({**known, service: name}).encode())
