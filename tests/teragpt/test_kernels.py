from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="this torch has no Triton")
CASES = [
    "cross_entropy", "cross_entropy of few", "norm_rotary", "cast_both", "adamw", "rounded_adamw", "block", "swiglu",
    "joined",
]  # fmt: skip


@pytest.fixture(scope="module")
def off() -> dict[str, float]:
    """How far each kernel is from its twin, in a process where Triton interprets."""
    command = [sys.executable, "-m", "tests.teragpt.kernel_cases"]
    environ = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_computes_what_its_plain_twin_does(case: str, off: dict[str, float]) -> None:
    assert off.keys() == set(CASES)
    assert off[case] <= 1e-5


def test_every_kernel_compiles_for_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # unset, it warns that another default will come
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from teragpt.compute import kernels

    half, wide, count = "*bf16", "*fp32", "i32"
    strides = {f"d{one}_{by}": count for one in "qkv" for by in "bth"}
    sizes = {"count": count, "tokens": count, "heads": count, "kv_heads": count, "half": count, "eps": "fp32"}
    inputs = dict.fromkeys(("qkv", "q_weight", "k_weight", "cos", "sin"), half) | sizes | {"ROWS": 32, "COLUMNS": 64}
    state = dict.fromkeys(("master", "mean", "square", "clip", "rates"), wide)
    scalars = dict.fromkeys(("decay", "beta1", "beta2", "eps"), "fp32")
    signatures: dict[Any, dict[str, Any]] = {
        kernels._cross_entropy: {
            "logits": half, "targets": "*i64", "losses": wide, "width": count, "vocabulary": count, "z": "fp32",
            "BLOCK": 4096,
        },
        kernels._norm_rotary: {**inputs, "qk": half},
        kernels._norm_rotary_backward: {
            **inputs, **strides, "dq": half, "dk": half, "dv": half, "dqkv": half, "q_parts": wide, "k_parts": wide,
            "TILES": 8,
        },
        kernels._swiglu_backward: {"grad": half, "joint": half, "slope": half, "width": count, "BLOCK": 1024},
        kernels._cast_both: {
            "x": half, "scale": wide, "cast": "*fp8e4nv", "turned": "*fp8e4nv", "rows": count, "columns": count,
            "stride": count, "limit": "fp32", "SIDE": 64,
        },
        kernels._adamw: {**state, "copy": half, "grad": half, **scalars, "count": count, "BLOCK": 1024},
        kernels._rounded_adamw: {
            **dict.fromkeys(("weight", "mean", "square", "grad"), half), "clip": wide, "rates": wide, "seed": "i64",
            **scalars, "count": count, "BLOCK": 1024,
        },
    }  # fmt: skip
    for kernel, types in signatures.items():
        assert set(kernel.arg_names) == set(types), kernel.__name__
        typed = {name: types[name] if isinstance(types[name], str) else "constexpr" for name in kernel.arg_names}
        fixed = {(at,): types[name] for at, name in enumerate(kernel.arg_names) if typed[name] == "constexpr"}
        source = ASTSource(kernel, signature=typed, constexprs=fixed)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
