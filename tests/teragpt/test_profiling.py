"""What the measurement of steps reports: kernels' kinds, and the time in which ranks do nothing but communicate."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teragpt.profiling import COMMUNICATION, covered, kind, overlap
from tests.teragpt import ranks

spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda one: (one[0], one[0] + one[1])))


@given(spans)
def test_what_spans_cover_is_counted_once(some: list[tuple[int, int]]) -> None:
    assert covered(some) == len({moment for start, end in some for moment in range(start, end)})


@given(spans, spans)
def test_communication_is_alone_where_nothing_else_runs(
    works: list[tuple[int, int]], talks: list[tuple[int, int]]
) -> None:
    busy, talking, alone = overlap([("products", *one) for one in works] + [(COMMUNICATION, *one) for one in talks])
    worked, talked = ({moment for start, end in some for moment in range(start, end)} for some in (works, talks))
    assert (busy, talking, alone) == (len(worked | talked), len(talked), len(talked - worked))


@pytest.mark.parametrize(
    ("name", "is_"),
    [
        ("ncclDevKernel_AllGather_RING_LL", COMMUNICATION),
        ("nvjet_sm90_tst_256x128", "products"),
        ("_norm_rotary", "passes over memory"),
    ],
)
def test_kernels_have_kinds(name: str, is_: str) -> None:
    assert kind(name) == is_


def test_two_ranks_report_their_speed_and_write_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    words = ["--timed-steps", "2", "--trace", str(trace), "--set", "size=tiny", "--set", "num_tokens=2048"]
    small = ["--set", "depth=1", "--set", "global_batch_tokens=2048"]
    code, said = ranks.run(["-m", "teragpt.profiling", *words, *small], 2)
    assert code == 0, said
    assert re.search(r"^.*tokens/s \| step [\d.]+ ms \| mfu - \| mem [\d.]+ GB$", said, re.MULTILINE), said
    assert json.loads(trace.read_text())["traceEvents"]
