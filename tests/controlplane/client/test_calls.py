"""The client and the OpenAPI document say the same: operations, queries, bodies, keys of replies."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator
from typing import Any, get_type_hints

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane import replies
from controlplane.client import AsyncClient, Client, calls
from controlplane.client.method import Method
from controlplane.client.requests import Call, Pages, Request
from tests.controlplane.plane import Plane

UNCOVERED = {
    "POST /runs/{run}/metrics": "a trainer reports there, with its attempt's own token",
    "GET /livez": "for what restarts the process; `ready` says more",
    "GET /metrics": "Prometheus reads it",
}
OTHERS = {
    "logs": {"search", "ignore_case", "regex", "since", "until", "limit", "cursor"},
    "search_logs": {"tail"},
}  # what the operation's other method sends
HTTP = httpx.Client(base_url="http://h/v1", verify=False)  # noqa: S501 - it sends nothing
METHODS: dict[str, Method[Any, Any, Any]] = {
    name: method for name, method in vars(Client).items() if isinstance(method, Method)
}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, Any]]:
    plane = Plane(tmp_path_factory.mktemp("home"))
    yield plane.app().openapi()
    plane.store.close()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path.removeprefix('/v1')}", operation


def asked(method: Method[Any, Any, Any], **chosen: Any) -> Request:
    """What the method sends with every parameter given."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(method.build).parameters.items():
        kind = str(parameter.annotation).partition("[")[0]
        plain = {"Mapping": {"size": "tiny"}, "Sequence": ["a"], "str": "a", "str | None": "a"}.get(kind, 1)
        given[name] = chosen.get(name) or plain
    built = method.build(**given)
    request = built.next() if isinstance(built, Pages) else built
    assert isinstance(request, Request)
    return request


def requests() -> Iterator[tuple[str, Request]]:
    for name, method in METHODS.items():
        for action in ("pause", "drain", "resume") if name == "change_queue" else ("",):
            yield name, asked(method, action=action)


def test_every_operation_has_a_method_or_a_reason(document: dict[str, Any]) -> None:
    offered = {name for name, _ in operations(document)}
    called = {f"{request.method} {request.template}" for _, request in requests()}
    assert called | set(UNCOVERED) == offered
    assert not called & set(UNCOVERED)


def test_every_operation_of_the_core_is_a_method_of_both_clients() -> None:
    core = {
        name
        for name, it in vars(calls).items()
        if inspect.isfunction(it) and name[0] != "_" and it.__module__ == calls.__name__
    }
    assert set(METHODS) == core
    assert {name: method.build for name, method in vars(AsyncClient).items() if isinstance(method, Method)} == {
        name: method.build for name, method in METHODS.items()
    }
    assert public(Client) == public(AsyncClient)


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("name", "request_"), list(requests()), ids=lambda it: it if isinstance(it, str) else "")
def test_what_is_sent_is_what_the_document_allows(name: str, request_: Request, document: dict[str, Any]) -> None:
    operation = dict(operations(document))[f"{request_.method} {request_.template}"]
    parameters = {(each["in"], each["name"]) for each in operation.get("parameters", [])}
    sent = {("query", key) for key in request_.params} | {("path", key) for key in request_.at}
    sent |= {("header", key) for key in request_.headers}
    others = {("query", key) for key in OTHERS.get(name, ())}
    assert sent == parameters - {("header", "last-event-id")} - others
    assert ("requestBody" in operation) == (request_.json is not None) or name == "change_queue"


@pytest.mark.parametrize("name", ["Run", "Attempt", "Event", "Progress", "LogMatch"])
def test_typed_replies_have_the_documents_keys(name: str, document: dict[str, Any]) -> None:
    assert set(get_type_hints(getattr(replies, name))) == set(document["components"]["schemas"][name]["properties"])


def test_what_is_sent_again_is_harmless_or_carries_a_key() -> None:
    for name, request in requests():
        if isinstance(request, Call) and request.repeats and request.method == "POST":
            makes = name in {"create", "clone", "retry", "prepare", "create_sweep"}
            assert makes == ("idempotency-key" in request.headers)
        if isinstance(request, Call) and request.method == "DELETE":
            assert not request.repeats


@settings(deadline=None)
@example(".")
@example("..")
@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_name_stays_one_part_of_the_path(name: str) -> None:
    path = calls.cancel(name).to(HTTP).url.raw_path.decode()
    assert path.split("/")[1:3] == ["v1", "runs"]
    assert path.count("/") == 4
