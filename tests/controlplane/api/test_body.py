from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.api.body import DEEPEST, LARGEST_INTEGER, oddities, parse
from controlplane.api.problems import Refusal
from controlplane.domain.complaints import LONGEST_ECHO

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST_INTEGER, LARGEST_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc~/"), inner, max_size=4),
)


@given(JSON)
def test_every_value_of_json_is_read_as_it_is(value: object) -> None:
    assert parse(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(Refusal):
        json.dumps(parse(body), allow_nan=False).encode()


UNREAD = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "line 1, column 2"),
        (b'{"size": tiny}', "line 1, column 10"),
        (b"\xff\xfe\x00", "UTF"),
        *(('{"size": "tiny"}'.encode(coding), "allowed: UTF-8") for coding in UNREAD),
        (b'"\xe4"', "not UTF-8 at byte 1"),
        (b"[" * 100_000, "nested"),
        (b"9" * 5000, "thousands of digits"),
        (b"", "line 1, column 1"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(body: bytes, words: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse(body)
    assert caught.value.code == "invalid_json"
    assert words in str(caught.value.detail)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ('{"limits": {"max_restarts": NaN}}', "/limits/max_restarts"),
        ('{"train": {"learning_rate": Infinity}}', "/train/learning_rate"),
        ('{"train": {"learning_rate": 1e999}}', "/train/learning_rate"),
        ('{"compute": {"nodes": 9223372036854775808}}', "/compute/nodes"),
        ('{"env": [{"name": "A", "value": "a\\u0000b"}]}', "/env/0/value"),
        ('{"name": "\\ud800"}', "/name"),
        ('{"labels": {"a/b~c": "\\ud800"}}', "/labels/a~1b~0c"),
        ('{"labels": {"\\ud800": "x"}}', "/labels"),
        ("NaN", ""),
    ],
)
def test_values_that_only_python_reads_are_refused_with_a_pointer(body: str, pointer: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse(body.encode())
    assert caught.value.code == "invalid_request"
    assert [field.pointer for field in caught.value.fields] == [pointer]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (f'{{"n": {10**30}}}', f"got {10**30}; allowed: integers of 64 bits"),
        (f'{{"n": -{10**400}}}', f"got -1{'0' * (LONGEST_ECHO - 3)}…; allowed: integers of 64 bits"),
        ('{"n": NaN}', "got nan; allowed: finite numbers"),
        ('{"n": "\\u0000"}', "got a NUL character; allowed: any other"),
        ('{"n": "\\ud800"}', "got half of a surrogate pair; allowed: whole characters"),
    ],
)
def test_such_values_are_told_what_was_given_and_what_is_allowed(body: str, detail: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse(body.encode())
    assert [field.detail for field in caught.value.fields] == [detail]


def test_every_bad_value_is_reported_up_to_a_hundred() -> None:
    with pytest.raises(Refusal) as caught:
        parse(json.dumps([math.nan] * 250).encode())
    assert len(caught.value.fields) == 100


def test_nesting_ends_at_the_limit() -> None:
    assert not list(oddities(json.loads("[" * DEEPEST + "]" * DEEPEST)))
    assert [problem.code for problem in oddities(json.loads("[" * 40 + "]" * 40))] == ["too_deep"]


def test_a_key_that_is_there_twice_is_pointed_at() -> None:
    with pytest.raises(Refusal) as refused:
        parse(b'{"a/b": 1, "c": [{"d": 1, "e": 2, "d": {"f": 1}}], "a/b": 2, "g": {"h": 1, "i": {"h": 1}}}')
    found = [(one.pointer, one.code, one.detail) for one in refused.value.fields]
    told = ("repeated_key", "got it more than once; allowed: once")
    assert found == [("/a~1b", *told), ("/c/0/d", *told)]
