from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from controlplane.api.problems import CODES
from controlplane.api.usage import BY as USAGE_BY
from controlplane.domain.fields import WORDS
from tests.controlplane.plane import BASE, Plane, opened

API = Path(__file__).parents[3] / "docs" / "api.md"


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> dict[str, Any]:
    """The API's description, which takes half a second to make and which no test changes."""
    with opened(tmp_path_factory.mktemp("described") / "home", migrated) as plane:
        schema: dict[str, Any] = TestClient(plane.app(), base_url=BASE).get("/openapi.json").json()
    return schema


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_the_documentation_needs_no_internet(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    places = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert places
    for place in places:
        assert "//" not in place
        reply = client.get(f"/{place}")
        assert reply.status_code == 200
        assert len(reply.content) > 100
    assert client.get("/docs/other.js").status_code == 404


def patterns(part: object) -> Iterator[str]:
    """Every regular expression in a part of the API's description, those of values that it makes itself left out."""
    if isinstance(part, dict):
        if isinstance(part.get("pattern"), str):
            yield part["pattern"]
        yield from (found for each in part.values() for found in patterns(each))
    elif isinstance(part, list):
        yield from (found for each in part for found in patterns(each))


def test_what_a_pattern_allows_is_said_in_words(document: dict[str, Any]) -> None:
    own = {USAGE_BY.pattern}  # its validator says what it allows
    assert set(patterns(document)) - own <= WORDS.keys()


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_the_first_address_says_what_answers_and_where_to_go_on(client: TestClient, prefix: str) -> None:
    index = client.get(f"{prefix}/").json()
    assert (index["name"], bool(index["version"])) == ("TeraGPT", True)
    assert {"runs", "sizes", "docs", "openapi"} <= set(index["links"])
    for link in index["links"].values():
        assert client.get(link).status_code == 200, link


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_the_page_finds_its_document_at_either_address(client: TestClient, prefix: str) -> None:
    assert "'openapi.json'" in client.get(f"{prefix}/docs").text
    assert client.get(f"{prefix}/openapi.json").json()["info"]["title"] == "TeraGPT"


def test_every_field_has_a_description_and_an_example(document: dict[str, Any]) -> None:
    bare = []
    for name, schema in document["components"]["schemas"].items():
        if "enum" in schema:
            continue
        assert schema.get("description"), name
        for field, entry in schema.get("properties", {}).items():
            if not entry.get("description") or not entry.get("examples"):
                bare.append(f"{name}.{field}")
    assert not bare


def test_an_example_of_a_field_made_of_others_is_whole(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    (pod,) = schemas["Attempt"]["properties"]["pods"]["examples"][0]
    assert pod == {name: entry["examples"][0] for name, entry in schemas["Pod"]["properties"].items()}
    assert schemas["RunSpec"]["properties"]["limits"]["description"] == schemas["Limits"]["description"]


def test_every_parameter_has_a_description_and_an_example(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), (path, method, parameter["name"])
            assert "examples" in parameter["schema"] or "examples" in parameter, (path, method, parameter["name"])


def test_every_operation_says_what_it_does_and_how_it_refuses(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        assert operation["summary"], (path, method)
        assert operation["description"], (path, method)
        assert "application/problem+json" in operation["responses"]["4XX"]["content"], (path, method)


def test_no_reply_is_documented_that_the_api_does_not_give(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]


def examples(document: dict[str, Any], schema: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Each example of each field of a schema with the pointer of the field; of a section that needs others, whole."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    fields = schema.get("properties", {})
    needed = {name: fields[name]["examples"][0] for name in schema.get("required", [])} if place else {}
    for field, entry in fields.items():
        for example in entry.get("examples", []):
            yield (place, needed | {field: example}) if needed else (f"{place}/{field}", example)
        for part in [entry, *entry.get("anyOf", [])]:
            if "$ref" in part:
                yield from examples(document, part, f"{place}/{field}")


def placed(pointer: str, value: Any) -> dict[str, Any]:
    for part in reversed(pointer.strip("/").split("/")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def test_a_request_made_from_each_example_is_accepted_or_needs_kubernetes(
    client: TestClient, plane: Plane, document: dict[str, Any]
) -> None:
    tried = 0
    for path in ("/v1/runs", "/v1/runs:preview", "/v1/plans"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for pointer, example in examples(document, schema):
            body = {"size": "tiny"} | placed(pointer, example)
            reply = client.post(path, json=body)
            tried += 1
            if reply.status_code == 422:
                told = [(one["code"], one["pointer"]) for one in reply.json()["errors"]]
                assert {code for code, _ in told} <= {"not_on_this_cluster", "no_such_cluster", "not_a_folder"}, pointer
                assert all(f"{one}/".startswith(f"{pointer}/") or pointer.startswith(one) for _, one in told)
                continue
            assert reply.status_code in {200, 201}, (pointer, example, reply.text)
            if path == "/v1/runs":
                plane.end(reply.json()["id"])
    assert tried > 40


def test_points_made_from_the_examples_are_accepted(
    client: TestClient, plane: Plane, document: dict[str, Any], run: dict[str, Any]
) -> None:
    points = document["components"]["schemas"]["NewPoints"]["properties"]["points"]["examples"][0]
    one = document["components"]["schemas"]["NewPoint"]["properties"]
    body = {"attempt": 1, "points": [*points, {name: entry["examples"][0] for name, entry in one.items()}]}
    headers = {"authorization": f"Bearer {plane.token(run['id'])}"}
    assert client.post(f"/v1/runs/{run['id']}/metrics", json=body, headers=headers).status_code == 200


def test_query_parameters_made_from_the_examples_are_accepted(
    client: TestClient, document: dict[str, Any], run: dict[str, Any]
) -> None:
    for path, method, operation in operations(document):
        if method != "get" or path.endswith("/stream"):
            continue
        for parameter in operation.get("parameters", []):
            values = parameter["schema"].get("examples") or parameter["examples"]
            if parameter["in"] == "query" and values[0] is not None:
                value = run["id"] if parameter["name"] == "run" else values[0]  # an example's run is not there
                reply = client.get(path.replace("{run}", run["id"]), params={parameter["name"]: value})
                assert reply.status_code == 200, (path, parameter["name"], reply.text)


def test_every_route_is_documented_with_a_call(document: dict[str, Any]) -> None:
    text = API.read_text("utf-8")
    for path, method, _ in operations(document):
        place = (
            path.removeprefix("/v1").replace("{run}", "$RUN").replace("{sweep}", "$SWEEP").replace("{queue}", "default")
        )
        assert re.search(rf"^curl .*{re.escape(place)}(\s|'|\"|\?|$)", text, re.MULTILINE), (method, path)
        assert f"`{method.upper()} {path.removeprefix('/v1')}`" in text


def test_every_code_is_documented() -> None:
    text = API.read_text("utf-8")
    for code, (status, _) in CODES.items():
        assert re.search(rf"^\| `{code}` \| {status} \|", text, re.MULTILINE), code


def test_every_measurement_is_documented(client: TestClient) -> None:
    text = API.read_text("utf-8")
    for name in re.findall(r"^# TYPE (\S+)", client.get("/metrics").text, re.MULTILINE):
        if not name.endswith("_created"):
            assert f"`{name}`" in text


def test_a_sweep_made_from_the_examples_is_accepted(client: TestClient, document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["SweepSpec"]["properties"]
    body = {name: entry["examples"][0] for name, entry in fields.items()}
    for left_out in ("grid", "points"):
        made = client.post("/v1/sweeps", json={name: value for name, value in body.items() if name != left_out})
        assert made.status_code == 201, made.text
        client.post(f"/v1/sweeps/{made.json()['id']}/cancel")
        body["name"] = "others"
