from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import teragpt
from teragpt import train
from teragpt.checkpoint import published
from teragpt.config import ConfigError
from teragpt.inference.trained import load
from teragpt.launcher.environment import read_attempt
from teragpt.prepare.corpus import embedded_dataset
from teragpt.storage import Disk, folder_at
from teragpt.train import Trainer, main
from tests.teragpt import ranks, stores

FOLDER = Path(teragpt.__file__).parent


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, output = ranks.train({"out": out}, 2)
    assert code == 0, output
    return out, output


def losses(output: str) -> dict[int, float]:
    return {step: float(loss) for step, loss in ranks.curve(output).items()}


def test_no_file_of_the_package_has_a_standard_library_modules_name() -> None:
    assert not {path.stem for path in FOLDER.glob("*.py")} & (sys.stdlib_module_names - {"__init__"})


def test_a_run_folder_holds_the_record(uninterrupted: tuple[Path, str]) -> None:
    out, output = uninterrupted
    points = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = [point for point in points if "loss" in point]
    assert [point["step"] for point in trained] == list(range(1, 13))
    assert [point["seq"] for point in points] == list(range(1, len(points) + 1))
    assert {f"{point['loss']:.4f}" for point in trained} == set(ranks.curve(output).values())
    assert [point["step"] for point in points if "val_loss" in point] == [0, 6, 12]
    assert [point["step"] for point in points if "checkpoint" in point] == [4, 8, 12]
    assert json.loads((out / "config.json").read_text())["dim"] == 32
    assert [one.step for one in published(Disk(out))] == [8, 12]
    assert (out / "tokenizer" / "tokenizer.json").exists()
    assert "eta 0:00" in output


@pytest.mark.unmeasured
@pytest.mark.parametrize("count", [1, 4])
def test_other_numbers_of_ranks_have_the_same_curve(
    tmp_path: Path, uninterrupted: tuple[Path, str], count: int
) -> None:
    code, output = ranks.train({"out": tmp_path / "run"}, count)
    assert code == 0, output
    expected = losses(uninterrupted[1])
    assert losses(output).keys() == expected.keys()
    assert all(abs(loss - expected[step]) <= 1e-3 for step, loss in losses(output).items())


def test_a_run_kept_in_bf16_has_the_curve_of_fp32_goes_on_in_it_and_back(tmp_path: Path) -> None:
    constant = {"schedule": "wsd", "decay_fraction": 0.0}
    code, whole = ranks.train({**constant, "out": tmp_path / "whole"})
    assert code == 0, whole
    printed = ""
    for steps, kept_in, count in ((4, "bf16", 2), (8, "fp32", 1), (12, "bf16", 1)):
        settings = {**constant, "out": tmp_path / "run", "steps": steps, "state_dtype": kept_in}
        code, output = ranks.train(settings, count)
        assert code == 0, output
        assert not printed or f"resumed from step {steps - 4}" in output
        printed += output
    found, expected = losses(printed), losses(whole)
    assert found.keys() == expected.keys()
    assert found != expected
    assert all(abs(loss - expected[step]) <= 0.02 for step, loss in found.items())


@pytest.mark.unmeasured
def test_the_file_itself_runs_and_finds_its_package(tmp_path: Path) -> None:
    process = ranks.start([str(FOLDER / "train.py"), *ranks.arguments({**ranks.SMALL, "out": tmp_path, "steps": 2})])
    output, _ = process.communicate(timeout=ranks.PATIENCE_S)
    assert process.returncode == 0, output
    assert "finished 2 steps" in output


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    settings = {"out": tmp_path / "run", "steps": 2}
    ranks.train(settings)
    code, output = ranks.train(settings)
    assert code == 0
    assert ranks.curve(output) == {}
    assert "resumed from step 2" in output


KILLS, STEPS = 3, 30


@pytest.mark.unmeasured
def test_runs_killed_at_any_instant_go_on_to_the_same_curve(tmp_path: Path) -> None:
    """kill -9 at seeded steps over the whole run, of all ranks inside a save or of one at any time, until it ends."""
    settings: dict[str, object] = {"steps": STEPS, "checkpoint_every": 3, "eval_every": STEPS, "dim": 128, "ffn": 512}
    code, whole = ranks.train({**settings, "out": tmp_path / "whole"}, 2)
    assert code == 0, whole
    out, chance, printed, torn = tmp_path / "run", random.Random(7), "", 0
    for kill in range(KILLS):
        step = kill * STEPS // KILLS + chance.randrange(1, STEPS // KILLS // 2)
        reached = partial(saving_after, step, out) if kill % 2 == 0 else partial(stepped, step)
        printed += ranks.train_until(reached, {**settings, "out": out}, 2, everyone=kill % 2 == 0)
        torn += bool(ranks.torn(out)) and kill % 2 == 0
    code, output = ranks.train({**settings, "out": out}, 2)
    assert code == 0, output
    assert torn, "no kill fell inside a save"
    assert ranks.curve(printed + output) == ranks.curve(whole)


def last_step(output: str) -> int:
    """The last step that was printed, or 0."""
    return int(re.findall(r"^step (\d+)/", f"step 0/\n{output}", re.MULTILINE)[-1])


def stepped(step: int, output: str) -> bool:
    """Whether a run has that step behind it."""
    return last_step(output) >= step


def saving_after(step: int, out: Path, output: str) -> bool:
    """Whether it is inside a save besides."""
    return stepped(step, output) and bool(ranks.torn(out))


@pytest.mark.unmeasured
def test_a_run_in_an_object_store_is_killed_goes_on_and_is_used(
    tmp_path: Path, uninterrupted: tuple[Path, str], s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks take their data from a store and write their run there; kill -9, then the same command again."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    corpus = embedded_dataset()
    for path in filter(Path.is_file, corpus.rglob("*")):
        relative = path.relative_to(corpus).as_posix()
        folder_at(f"s3://{stores.BUCKET}/data", "data").write(relative, path.read_bytes())
    out = f"s3://{stores.BUCKET}/runs/one"
    settings = {"out": out, "data": f"s3://{stores.BUCKET}/data"}
    cache = {"TERAGPT_CACHE": str(tmp_path), "TERAGPT_CACHE_BYTES": "1500000"}  # of the 4.6 MB that the corpus takes
    said = ranks.train_until(lambda said: last_step(said) >= 9, settings, 2, cache)
    code, output = ranks.train(settings, 2, cache)
    assert code == 0, output
    assert re.search("resumed from step [48] ", output)
    assert ranks.curve(said + output) == ranks.curve(uninterrupted[1])
    blocks = [path.stat().st_size for path in tmp_path.glob("datasets/*/blocks/*/[0-9]*")]
    assert 1 <= len(blocks) <= 5
    assert sum(blocks) <= 1_500_000
    run = folder_at(out, "run")
    assert [one.step for one in published(run)] == [8, 12]
    points = [json.loads(line) for line in run.read("metrics-2.jsonl").splitlines()]
    assert [point["step"] for point in points if "loss" in point][-1] == 12
    events = {"events.out.tfevents-1.000001", "events.out.tfevents-2.000002"}  # the first after its checkpoint alone
    rest = {"checkpoints", "config.json", "metrics-1.jsonl", "metrics-2.jsonl", "tokenizer"}
    assert rest < run.entries().keys() <= rest | events
    _, tokenizer, _ = load(out)
    assert tokenizer.decode(tokenizer.encode("def main():\n")) == "def main():\n"


@pytest.mark.unmeasured
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_a_run_goes_on_on_another_number_of_ranks(
    tmp_path: Path, uninterrupted: tuple[Path, str], before: int, after: int
) -> None:
    out = tmp_path / "run"
    saved = out / "checkpoints"
    first = ranks.train_until(lambda _: bool([*saved.glob("step-00000004-*/meta.json")]), {"out": out}, before)
    code, second = ranks.train({"out": out}, after)
    assert code == 0, second
    found, expected = losses(first + second), losses(uninterrupted[1])
    assert found.keys() == expected.keys()
    assert all(abs(loss - expected[step]) <= 1e-3 for step, loss in found.items())


def test_sigterm_writes_a_checkpoint_and_exits_143(tmp_path: Path) -> None:
    settings = {"out": tmp_path / "run", "steps": 5000, "checkpoint_every": 5000, "eval_every": 5000}
    code, output = ranks.train_and_signal(signal.SIGTERM, partial(stepped, 3), settings)
    assert code == 143, output
    stopped = published(Disk(tmp_path / "run"))[-1].step
    assert f"told to at step {stopped}" in output


def test_a_later_attempt_fences_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {"out": out, "steps": 100_000, "checkpoint_every": 10, "eval_every": 100_000}
    words = ranks.arguments({**ranks.SMALL, **settings})
    with ThreadPoolExecutor() as pool:
        zombie = pool.submit(ranks.run, ["-m", "teragpt.train", *words], 1)
        while not [*out.glob("checkpoints/step-*/meta.json")]:
            assert not zombie.done(), zombie.result()
            time.sleep(0.02)
        code, output = ranks.train({**settings, "max_seconds": 1})
        assert code == 143, output
        assert "resumed from step" in output
        code, said = zombie.result()
    assert code == 143, said
    assert re.search("stopped: .*later attempt", said)
    assert published(Disk(out))[-1].attempt == 2


def test_an_attempt_that_another_claimed_is_not_started(tmp_path: Path) -> None:
    settings = {"out": tmp_path / "run", "steps": 2}
    assert ranks.train(settings, environ={"TERAGPT_ATTEMPT": "3"})[0] == 0
    code, output = ranks.train(settings, environ={"TERAGPT_ATTEMPT": "2"})
    assert code == 143
    assert "attempt 3 has" in output


@pytest.mark.parametrize("attempt", ["0", "one", "-1", ""])
def test_an_attempt_that_is_no_number_is_refused(attempt: str) -> None:
    with pytest.raises(ConfigError, match="TERAGPT_ATTEMPT: got"):
        read_attempt({"TERAGPT_ATTEMPT": attempt})


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "2"}
        code, output = ranks.train({"out": tmp_path / "run"}, environ=world)
    assert code == 1
    assert f"error: MASTER_ADDR, MASTER_PORT: got 127.0.0.1:{port}" in output
    assert "Traceback" not in output


def test_a_new_run_starts_from_anothers_checkpoint(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert ranks.train({"out": first, "steps": 4})[0] == 0
    code, output = ranks.train({"out": second, "steps": 6, "start_from": first})
    assert code == 0, output
    assert "resumed from step 4" in output
    assert list(ranks.curve(output)) == [5, 6]
    assert published(Disk(first))[-1].step == 4
    code, output = ranks.train({"out": tmp_path / "whole", "steps": 4, "start_from": first})
    assert code == 0, output
    own = published(Disk(tmp_path / "whole"))  # though nothing was left to do
    assert [one.step for one in own] == [4]


DIVERGING = """
import torch
from teragpt.data import open_dataset

class Poisoned:
    def __init__(self, good):
        self.good = good
    def __getattr__(self, name):
        return getattr(self.good, name)
    def batch(self, step, *rest):
        ids, targets = self.good.batch(step, *rest)
        return (ids.bitwise_not() if step in {BAD} else ids), targets

from teragpt.model import TeraGPT

class Model(TeraGPT):
    def forward(self, ids, positions=None, targets=None):
        loss = super().forward(ids.abs(), positions, targets)
        return loss * float("nan") if bool((ids < 0).any()) else loss

def open(path, *, tokenizer=""):
    return Poisoned(open_dataset(path, tokenizer=tokenizer))
"""


def poisoned(folder: Path, bad: str, steps: int) -> tuple[int, str]:
    name = f"poisoned_{folder.name}"
    (folder / f"{name}.py").write_text(DIVERGING.replace("BAD", bad))
    settings = {"out": folder / "run", "loader": f"{name}:open", "model": f"{name}:Model", "steps": steps}
    sys.path.insert(0, str(folder))
    try:
        return ranks.train(settings)
    finally:
        sys.path.remove(str(folder))


def test_a_run_rewinds_past_a_bad_batch_and_ends(tmp_path: Path) -> None:
    code, output = poisoned(tmp_path, "6", 12)
    assert code == 0, output
    assert "loss nan at step 7: rewinding" in output
    assert published(Disk(tmp_path / "run"))[-1].meta["progress"] == {"step": 12, "skipped": 3, "rewinds": 1}


def test_a_run_that_stays_bad_exits_3(tmp_path: Path) -> None:
    code, output = poisoned(tmp_path, "*range(6, 99)", 12)
    assert code == 3
    assert "diverged: loss nan at step 5 after 2 rewinds" in output


def test_a_users_own_model_and_data_are_names(tmp_path: Path) -> None:
    code, output = poisoned(tmp_path, "", 2)
    assert code == 0, output


def test_bad_settings_exit_2_before_anything_is_made(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"size": "9b"}, "size: got '9b'"),
        ({"model": "nowhere:Model"}, "model: got 'nowhere:Model'"),
        ({"start_from": tmp_path / "none"}, "start_from: got"),
        ({"context": 1 << 20, "global_batch_tokens": 1 << 20}, "context: got 1048576"),
        ({"data": tmp_path / "none"}, "none"),
        ({"num_tokens": 100}, "num_tokens: got 100; allowed: at least the dataset's vocabulary of 2048"),
    ]
    for settings, message in cases:
        code, output = ranks.train({"out": tmp_path / "run", **settings})
        assert (code, message in output) == (2, True), output
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_on_every_rank_is_left_to_rank_0_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "RANK_0_FIRST_S", 0.5)
    for rank, waits in ((0, False), (1, True)):
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": str(rank), "WORLD_SIZE": "2"}
        begin = time.monotonic()
        code, output = ranks.train({"pp": 3}, environ=world)
        assert (code, output.count("error: pp: got 3; allowed: at most depth 2\n")) == (2, 1)
        assert (time.monotonic() - begin >= 0.5) == waits


def test_a_spec_in_the_environment_gives_way_to_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {**ranks.SMALL, "out": str(tmp_path / "spec"), "steps": 2}
    code, _ = ranks.train({"out": tmp_path / "line"}, environ={"TERAGPT_SPEC": json.dumps(spec)})
    assert code == 0
    assert (tmp_path / "line").exists()
    assert not (tmp_path / "spec").exists()
    monkeypatch.setenv("TERAGPT_SPEC", "{")
    assert main([]) == 2


def test_the_library_trains_as_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if ranks.OURS.match(name):
            monkeypatch.delenv(name)
    before = signal.getsignal(signal.SIGTERM)
    assert Trainer({**ranks.SMALL, "out": str(tmp_path / "run")}, steps=2).train() == 0
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(ConfigError, match="steps"):
        Trainer(steps=-1)
