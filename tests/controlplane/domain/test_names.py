from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.names import RUN_ID, default_name, fingerprint, new_run_id, object_name, slug

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?")


@given(st.text(min_size=1, max_size=100))
def test_a_name_of_any_alphabet_becomes_a_dns_label(name: str) -> None:
    assert LABEL.fullmatch(slug(name))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("GPT 1.3B (a)", "gpt-1-3b-a"),
        ("Übermäßig", "ubermaig"),
        ("经纬", "run"),
        ("1.3b", "run-1-3b"),
        ("-", "run"),
        ("x" * 50, "x" * 30),
        ("a" * 29 + " b", "a" * 29),
    ],
)
def test_a_slug_keeps_what_it_can(name: str, label: str) -> None:
    assert slug(name) == label


def test_object_names_tell_runs_and_attempts_apart_and_leave_room_for_pods() -> None:
    one, two = new_run_id(), new_run_id()
    assert RUN_ID.fullmatch(one)
    names = {object_name("x" * 100, run, attempt) for run in (one, two) for attempt in (1, 2)}
    assert len(names) == 4
    assert all(len(f"{name}-worker-9999") <= 63 for name in names)


def test_a_default_name_does_not_repeat_the_id_in_the_objects_name() -> None:
    run_id = new_run_id()
    end = run_id[-8:].lower()
    assert object_name(default_name("1.3b", run_id), run_id, 2) == f"run-1-3b-{end}-2"


def test_equal_values_have_one_fingerprint_whatever_their_order() -> None:
    assert fingerprint({"a": 1, "b": [2, "ü"]}) == fingerprint({"b": [2, "ü"], "a": 1}) != fingerprint({"a": 1})
