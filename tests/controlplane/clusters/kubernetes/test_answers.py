from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.clusters.base import Rejected, Unavailable
from controlplane.clusters.kubernetes.answers import Patience, meaning, value_at
from controlplane.clusters.kubernetes.connection import Refused, Trouble
from tests.controlplane.clusters.kubernetes.hands import manifest

ONE = manifest("run-1")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(status: int, message: str, *causes: dict[str, str]) -> Refused:
    body: dict[str, Any] = {"kind": "Status", "message": message, "details": {"causes": list(causes)}}
    return Refused(status, json.dumps(body).encode())


@pytest.mark.parametrize(
    "error",
    [
        Trouble("connection refused"),
        refused(429, "too many requests"),
        refused(500, 'Internal error occurred: failed calling webhook "v.k": connection refused'),
        refused(503, "the server is starting"),
        refused(504, "Timeout: request did not complete within the allotted timeout"),
        refused(502, "Bad gateway"),
        refused(403, 'pytorchjobs "x" is forbidden: exceeded quota: jobs, requested: 1, used: 5, limited: 5'),
    ],
    ids=lambda error: str(error)[:40],
)
def test_what_passes_is_asked_again_for_ever(error: Trouble | Refused) -> None:
    clock = Clock()
    patience = Patience(clock)
    for _ in range(3):
        assert isinstance(meaning(error, ONE, patience), Unavailable)
        clock.now += 100_000


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_about_the_object_is_final(status: int) -> None:
    found = meaning(refused(status, "it cannot be"), ONE, Patience())
    assert isinstance(found, Rejected)
    assert str(found) == ": got 'PyTorchJob run-1'; allowed: it cannot be"


def test_a_webhook_that_denies_is_final_whatever_its_code() -> None:
    said = 'admission webhook "v.k" denied the request: spec is bad'
    assert isinstance(meaning(refused(403, said), ONE, Patience()), Rejected)


@pytest.mark.parametrize(
    ("status", "words"), [(403, "may not create a PyTorchJob"), (404, "no kubeflow.org/v1 PyTorchJob")]
)
def test_a_faulty_installation_may_be_mended_for_a_while(status: int, words: str) -> None:
    clock = Clock()
    patience = Patience(clock)
    error = refused(status, "the server says no")
    for now in (0, 10, 299):
        clock.now = now
        found = meaning(error, ONE, patience)
        assert isinstance(found, Unavailable)
        assert words in str(found)
    clock.now = 301
    final = meaning(error, ONE, patience)
    assert isinstance(final, Rejected)
    assert words in str(final)
    patience.forget("run-1")
    assert isinstance(meaning(error, ONE, patience), Unavailable)


def test_fields_are_named_with_what_stood_there() -> None:
    path = "spec.pytorchReplicaSpecs[Master].template.spec.containers[0].image"
    found = meaning(refused(422, "invalid", {"field": path, "message": "must be another"}), ONE, Patience())
    assert isinstance(found, Rejected)
    (problem,) = found.problems
    assert (problem.path, problem.given, problem.allowed) == (path, "trainer", "must be another")


def test_unknown_fields_are_named() -> None:
    said = 'strict decoding error: unknown field "spec.runPolicy.foo", duplicate field "spec.nprocPerNode"'
    found = meaning(refused(400, said), ONE, Patience())
    assert isinstance(found, Rejected)
    assert [(problem.path, problem.given, problem.allowed) for problem in found.problems] == [
        ("spec.runPolicy.foo", None, "no unknown field"),
        ("spec.nprocPerNode", "1", "no duplicate field"),
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "run-1"),
        ("spec.nothing.here", None),
        ("spec[0]", None),
        ("kind.of", None),
        ("kind", "PyTorchJob"),
    ],
)
def test_a_path_that_leads_nowhere_finds_nothing(path: str, value: object) -> None:
    assert value_at(ONE, path) == value
