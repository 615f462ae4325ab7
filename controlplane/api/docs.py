"""Where the API tells about itself: an index of its addresses, and its documentation.

The documentation is readable without the internet: its page's scripts come from an installed package.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from controlplane.api.problems import MEDIA_TYPE

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}
DESCRIPTION = """\
From a model size to a trained GPT with one call: `POST /v1/runs` with `{"size": "tiny"}`.

Every address also works without `/v1`. Refusals are `application/problem+json` (RFC 9457) with a stable `code` and a
pointer to every bad field. Streams are server-sent events that resume by `Last-Event-ID`.
"""

INDEX = ("runs", "sweeps", "queues", "sizes", "docs", "openapi.json", "livez", "readyz", "metrics")

router = APIRouter(include_in_schema=False)


@router.get("/")
def index(request: Request) -> dict[str, Any]:
    """What answers here, and where to go on."""
    links = {name.removesuffix(".json"): f"/v1/{name}" for name in INDEX}
    return {"name": request.app.title, "version": request.app.version, "links": links}


@router.get("/docs")
def page() -> HTMLResponse:
    """The documentation."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="TeraGPT API",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon-32x32.png",
    )


@router.get("/docs/{asset}")
def asset(asset: str) -> Response:
    """One of the page's files."""
    if asset not in ASSETS:
        raise HTTPException(404)
    content = files("fastapi_swagger").joinpath("resources", asset).read_bytes()
    return Response(content, media_type=ASSETS[asset], headers={"cache-control": "max-age=86400"})


@router.get("/openapi.json")
def openapi(request: Request) -> JSONResponse:
    """The API as an OpenAPI document."""
    return JSONResponse(document(request.app))


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`, made at the first call."""
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
        for operation in (operation for path in schema["paths"].values() for operation in path.values()):
            for status, response in operation["responses"].items():
                if status in {"4XX", "5XX"}:
                    response["content"] = {MEDIA_TYPE: response["content"].popitem()[1]}
        _complete(schema["components"]["schemas"])
        schema["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{}, {"bearer": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _complete(schemas: dict[str, Any]) -> None:
    """Give each field that is made of other schemas an example made of theirs, and else their description."""
    for schema in schemas.values():
        for entry in schema.get("properties", {}).values():
            if "$ref" in entry:
                entry.setdefault("description", _referred(entry, schemas)["description"])
            entry.setdefault("examples", [_example(entry, schemas)])


def _referred(entry: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    return dict(schemas[entry["$ref"].rpartition("/")[2]])


def _example(entry: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """The first example of a field, or one made of the fields of what it holds."""
    if "examples" in entry:
        return entry["examples"][0]
    if "anyOf" in entry:
        return _example(entry["anyOf"][0], schemas)
    if "items" in entry:
        return [_example(entry["items"], schemas)]
    if "$ref" in entry:
        return _example(_referred(entry, schemas), schemas)
    if "enum" in entry:
        return entry["enum"][0]
    return {name: _example(each, schemas) for name, each in entry["properties"].items()}
