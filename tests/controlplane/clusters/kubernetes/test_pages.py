from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from controlplane.clusters.kubernetes.connection import Connection, Trouble
from controlplane.clusters.kubernetes.pages import Listing, items
from tests.controlplane.clusters.kubernetes.server import Answer, ApiServer

PODS = [{"metadata": {"name": f"pod-{number}"}, "spec": {"text": 'a "]" and a }'}} for number in range(3)]
ABOUT = {"resourceVersion": "7", "continue": "more"}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("order", [("kind", "metadata", "items"), ("items", "metadata", "kind")])
def test_a_page_is_read_in_whatever_order_and_spacing_it_comes(order: tuple[str, ...], indent: int | None) -> None:
    page: dict[str, Any] = {"kind": "PodList", "metadata": ABOUT, "items": PODS}
    beside: dict[str, Any] = {}
    body = json.dumps({name: page[name] for name in order}, indent=indent).encode()
    assert list(items(body, beside)) == PODS
    assert beside == {"kind": "PodList", "metadata": ABOUT, "version": "7"}


@pytest.mark.parametrize("none", [[], None])
def test_a_page_may_have_nothing(none: object) -> None:
    beside: dict[str, Any] = {}
    assert list(items(json.dumps({"items": none, "metadata": {"resourceVersion": "7"}}).encode(), beside)) == []
    assert beside["version"] == "7"


HEAD = '{"metadata": {"resourceVersion": "7"}, "items": [{}]'
WRONG = [
    "",
    "[]",
    "no",
    "{}",
    '{"items": [{}, ',
    '{"items": [{}], "metadata": {}}',
    '{"items": [], "metadata": 3}',
    HEAD,
]


@pytest.mark.parametrize("body", [*(text.encode() for text in WRONG), b"\xff{}"])
def test_what_is_no_whole_list_is_trouble(body: bytes) -> None:
    with pytest.raises(Trouble, match="an answer that is no list"):
        list(items(body, {}))


def test_an_error_of_who_reads_is_theirs() -> None:
    def read(_: object) -> None:
        raise KeyError("theirs")

    page = items(json.dumps({"metadata": ABOUT, "items": PODS}).encode(), {})
    with pytest.raises(KeyError, match="theirs"):
        list(map(read, page))


def test_all_pages_are_one_list_of_the_first_ones_version(server: ApiServer, connection: Connection) -> None:
    path = "/api/v1/namespaces/runs/pods"
    pages = [("", "1"), ("2", "9"), ("4", "9")]
    for following, version in pages:
        after = {"": "2", "2": "4", "4": ""}[following]
        body = {"metadata": {"resourceVersion": version, "continue": after}, "items": [{"page": following}]}
        server.fail(Answer(200, json.dumps(body).encode()), path=path)
    heard: list[None] = []
    listing = Listing(connection, path, {"labelSelector": "x=y"}, 2, lambda: heard.append(None))
    assert [item["page"] for item in listing] == ["", "2", "4"]
    assert listing.version == "1"
    assert len(heard) == 3
    asked = [
        (request.query["limit"], request.query.get("continue"), request.query["labelSelector"])
        for request in server.requests
    ]
    assert asked == [("2", None, "x=y"), ("2", "2", "x=y"), ("2", "4", "x=y")]


def test_no_more_than_one_object_of_a_page_is_decoded_at_a_time() -> None:
    pod = {"metadata": {"labels": {f"label-{number}": f"value-{number}" for number in range(200)}}}
    body = json.dumps({"metadata": ABOUT, "items": [pod] * 200}).encode()
    tracemalloc.start()
    try:
        for _ in items(body, {}):
            pass
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1.3 * len(body)  # the text itself; as a whole it were four times that
