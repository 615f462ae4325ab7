from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from teragpt.config import ConfigError
from teragpt.exchange.export import export
from teragpt.exchange.harness import INSTALL, measure_tasks, metrics_of, task_table
from teragpt.inference.sample import Sampler
from tests.teragpt.lm_eval_packages import packages

ANSWERED = {"step": 4, "tasks": {"colours": {"acc,none": 0.5}}}


def test_without_the_harness_the_error_says_how_to_get_it(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=f"tasks: got 'colours'; allowed: tasks once there is `{INSTALL}`"):
        measure_tasks(trained, ["colours"])


COLOURS: list[dict[str, Any]] = [
    {"question": "def ", "choices": ["main(self):", "xqzj"], "answer": 0},
    {"question": "import ", "choices": ["%%%%", "os"], "answer": 0},
    {"question": "    return ", "choices": ["None", "~~~~", "the"], "answer": 2},
]
WORDS = ["def main(self):\n    return None\n", "import os, sys  # Straße 漢字\n"]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
"""
CHOICES = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""


@pytest.mark.timeout(900)  # once, it installs the harness
@pytest.mark.unmeasured
def test_tasks_of_the_harness_say_what_the_model_itself_does(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    documents: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "colours": (CHOICES, COLOURS),
        "words": (ROLLING, [{"text": text} for text in WORDS]),
    }
    for name, (kind, lines) in documents.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, file=file) + kind, "utf-8")
    said = harness([["eval", str(run), "--task-folder", str(tmp_path), "--tasks", one] for one in ASKED], tmp_path)
    (kept,) = (run / "evaluations").glob("*-tasks-*.json")
    found = json.loads(kept.read_text("utf-8"))["tasks"]
    sampler = Sampler(str(run))
    right = [chosen(sampler, one) == one["answer"] for one in COLOURS]
    assert found["colours"]["acc,none"] == pytest.approx(sum(right) / len(right))
    spent = -sum(said_of(sampler, "", text) for text in WORDS) / math.log(2)
    bits = spent / sum(len(text.encode()) for text in WORDS)
    assert found["words"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
    assert f"{bits:.4f}" in said
    assert "tasks: got 'no_such_task'; allowed: names that `lm_eval ls tasks` lists" in said


ASKED = ("colours,words", "colours,no_such_task")
COMMANDS = """
import json, sys
from controlplane.cli import main
for words in json.loads(sys.argv[1]):
    print(main(words))
"""


def harness(commands: list[list[str]], home: Path) -> str:
    """What `teragpt` says to commands, in one process, where the harness is there and the hub cannot be reached."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(packages())])
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home / "hub")}
    command = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    ran = subprocess.run(command, env={**env, "PYTHONPATH": path}, check=True, capture_output=True, text=True)
    assert ran.stdout.split()[-1] == "2", "the last one is refused"
    return ran.stdout + ran.stderr


def chosen(sampler: Sampler, asked: dict[str, Any]) -> int:
    """The choice that a model finds the likeliest."""
    likely = [said_of(sampler, asked["question"], choice) for choice in asked["choices"]]
    return likely.index(max(likely))


def said_of(sampler: Sampler, before: str, text: str) -> float:
    """The log-probability of a text after another, or after what ends texts."""
    read = sampler.tokenizer.encode(before) if before else [sampler.tokenizer.end]
    ids = torch.tensor([*read, *sampler.tokenizer.encode(before + text)[len(read) if before else 0 :]])
    with torch.inference_mode():
        likely = sampler.model(ids[None, :-1])[0].double().log_softmax(-1)
    return float(likely.gather(1, ids[1:, None])[len(read) - 1 :].sum())


def test_the_numbers_of_a_result_are_kept_and_shown() -> None:
    assert metrics_of({"alias": "colours", "acc,none": 0.5, "acc_stderr,none": "N/A", "sample_len": 2}) == {
        "acc,none": 0.5
    }
    assert list(task_table([("first", ANSWERED)]))[1].split() == ["colours", "acc,none", "first", "4", "0.5000"]


def test_the_model_card_tells_what_tasks_measured(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "evaluations" / "step-00000004-tasks-1.json").write_text(json.dumps(ANSWERED), "utf-8")
    card = (export(run, tmp_path / "export") / "README.md").read_text("utf-8")
    assert "| colours | acc,none | 0.5000 |" in card
    assert "held-out source" not in card
