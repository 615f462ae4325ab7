"""What the API says when it refuses: RFC 9457 documents with a stable code and a pointer to every bad field.

Everything that goes wrong in a request ends here as a `Refusal`: the routes and the checks before them raise it, and
the handlers below translate what frameworks raise.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from controlplane.api.addresses import named
from controlplane.domain import errors
from controlplane.domain.complaints import said
from controlplane.domain.fields import BadField

MEDIA_TYPE = "application/problem+json"
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

CODES: dict[str, tuple[int, str]] = {  # those of controlplane.domain.errors, and those of HTTP
    "invalid_json": (400, "The body is not JSON"),
    "unauthorized": (401, "A token is needed"),
    "forbidden": (403, "This user may not do that"),
    "forbidden_host": (403, "The Host header names another machine"),
    "forbidden_origin": (403, "Pages of other origins may not call this API"),
    "unknown_route": (404, "No such address"),
    "not_found": (404, "No such thing"),
    "method_not_allowed": (405, "The address does not know this method"),
    "name_in_use": (409, "A live run has this name"),
    "folder_in_use": (409, "A live run writes to this folder"),
    "still_running": (409, "The run has not ended"),
    "not_alive": (409, "The run does not go on"),
    "not_reporting": (409, "No trainer of the run is there to be asked"),
    "being_purged": (409, "The run is being purged"),
    "needed_by_run": (409, "A live run needs it"),
    "not_training": (409, "A task is no run to clone"),
    "no_checkpoint": (409, "The run has no model yet"),
    "on_postgres": (409, "Postgres has its own means for this"),
    "conflict": (409, "The present state does not allow this"),
    "changed": (412, "The run has been changed since"),
    "body_late": (408, "The body did not come"),
    "body_too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The body must be JSON"),
    "invalid_request": (422, "The request has bad fields"),
    "idempotency_key_reused": (422, "The Idempotency-Key stands for another request"),
    "internal": (500, "The control plane made a mistake"),
    "store_damaged": (500, "The database is damaged"),
    "unavailable": (503, "The control plane cannot do this now"),
    "cluster_unavailable": (503, "The cluster does not answer"),
    "issuer_unavailable": (503, "The issuer of tokens does not answer"),
}


class FieldProblem(BaseModel):
    """One bad field of a request."""

    pointer: str = Field(
        description="JSON pointer (RFC 6901) into the body; `?name` for a query parameter, `header:name` for a header.",
        examples=["/compute/nodes"],
    )
    code: str = Field(description="What is wrong with it, as a stable word.", examples=["greater_than_equal"])
    detail: str = Field(description="What was given and what is allowed.", examples=["got 0; allowed: at least 1"])


class Problem(BaseModel):
    """Why a request was refused (RFC 9457, `application/problem+json`)."""

    type: str = Field(description="Identifies the kind of problem.", examples=["urn:teragpt:problem:invalid_request"])
    title: str = Field(description="The kind of problem in words.", examples=["The request has bad fields"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(description="What is wrong with this request.", examples=["1 field is wrong: /compute/nodes"])
    instance: str = Field(description="The address that was asked.", examples=["/v1/runs"])
    code: str = Field(description="The kind of problem as a stable word.", examples=["invalid_request"])
    errors: list[FieldProblem] = Field(
        default=[],
        description="Every bad field.",
        examples=[
            [{"pointer": "/compute/nodes", "code": "greater_than_equal", "detail": "got 0; allowed: at least 1"}]
        ],
    )
    request_id: str = Field(
        description="Names this request in the server's log.", examples=["01jd3m7x9k5v2q8r4t6w0y1z2a"]
    )


class Refusal(HTTPException):
    """Refuses the request with one of `CODES`; `extra` members are added to the document (RFC 9457, section 3.2)."""

    def __init__(
        self,
        code: str,
        detail: str,
        fields: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        self.code, self.fields, self.extra = code, fields, extra
        super().__init__(CODES[code][0], detail, dict(headers or {}))


def invalid(fields: Sequence[FieldProblem]) -> Refusal:
    """The refusal of a request with bad fields."""
    names = ", ".join(field.pointer or "the body" for field in fields)
    return Refusal(
        "invalid_request", f"{len(fields)} field{'s are' if len(fields) > 1 else ' is'} wrong: {names}", fields
    )


def install(app: FastAPI) -> None:
    """Make `app` answer with problem documents."""
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(errors.ControlPlaneError, _on_domain)


async def _on_http(request: Request, error: Exception) -> Response:
    """Starlette's own refusals have no code of ours yet."""
    assert isinstance(error, HTTPException)
    if isinstance(error, Refusal):
        return render(error, request.scope)
    status, headers = error.status_code, error.headers
    if status == HTTPStatus.NOT_FOUND:
        detail = f"{request.method} {named(request.scope['path'])} is no address of this API; /docs lists them"
        return render(Refusal("unknown_route", detail), request.scope)
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods(request))
        detail = f"{named(request.scope['path'])} does not know {request.method}; allowed: {allowed}"
        return render(Refusal("method_not_allowed", detail, headers={"allow": allowed}), request.scope)
    return render(Refusal("invalid_json", str(error.detail), headers=headers), request.scope)


def _methods(request: Request) -> list[str]:
    """What the address knows: each of its methods is a route of its own, and the router tells of the first alone."""
    asked = [(method, {**request.scope, "method": "GET" if method == "HEAD" else method}) for method in METHODS]
    routes = request.app.router.routes
    return [method for method, scope in asked if any(route.matches(scope)[0] is Match.FULL for route in routes)]


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    field = getattr(request.scope.get("route"), "body_field", None)
    body = getattr(getattr(field, "field_info", None), "annotation", None)
    found = [field_problem(cast("Mapping[str, Any]", entry), body) for entry in error.errors()]
    return render(invalid(found), request.scope)


async def _on_domain(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ControlPlaneError)
    return render(translate(error), request.scope)


def translate(error: errors.ControlPlaneError) -> Refusal:
    """A refusal of the domain in HTTP's words."""
    if isinstance(error, errors.InvalidSpec):
        problems = [FieldProblem(pointer=p.pointer, code=p.code, detail=p.detail) for p in error.problems]
        return invalid(problems)
    if isinstance(error, errors.BadCursor):
        return invalid([FieldProblem(pointer="?cursor", code=error.code, detail=str(error))])
    if isinstance(error, errors.StoreError) and error.code not in CODES:
        return Refusal("unavailable", str(error), headers={"retry-after": "5"})
    if isinstance(error, errors.NameInUse | errors.FolderInUse):
        field = "/name" if isinstance(error, errors.NameInUse) else "/checkpoint/uri"
        at = [FieldProblem(pointer=field, code=error.code, detail=str(error))]
        return Refusal(error.code, str(error), at, holder=error.holder)
    if isinstance(error, errors.ClusterSilent | errors.IssuerSilent):
        return Refusal(error.code, str(error), headers={"retry-after": "5"})
    challenge = {"www-authenticate": "Bearer"} if isinstance(error, errors.Unauthorized) else {}
    code = error.code if error.code in CODES else "internal"
    return Refusal(code, str(error), headers=challenge)


def field_problem(entry: Mapping[str, Any], body: type[BaseModel] | None = None) -> FieldProblem:
    """A bad field, from one of pydantic's errors; `body` is the model that was asked for."""
    place, *path = entry["loc"]
    code, detail = str(entry["type"]), said(entry)
    if place != "body":
        prefix = "?" if place == "query" else f"{place}:"
        return FieldProblem(pointer=f"{prefix}{path[0]}", code=code, detail=detail)
    if code == "missing":
        return FieldProblem(pointer=pointer(path), code=code, detail="this field is required")
    if code == "extra_forbidden":
        return FieldProblem(pointer=pointer(path), code="unknown_field", detail=_unknown_field(path, body))
    if path[-1:] == ["[key]"]:  # pydantic's word for a bad key; the pointer to it is that of its value
        path.pop()
    cause = entry.get("ctx", {}).get("error")
    if isinstance(cause, BadField):
        path.append(cause.field)
    return FieldProblem(pointer=pointer(path), code=code, detail=detail)


def pointer(path: Sequence[str | int]) -> str:
    """The JSON pointer (RFC 6901) of a path into a body."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def suggest(name: str, known: Sequence[str]) -> str:
    """What is known instead of `name`, and which of them was probably meant."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"{f'did you mean {close[0]}? ' if close else ''}allowed: {', '.join(known) or 'none'}"


def _unknown_field(path: Sequence[str | int], body: type[BaseModel] | None) -> str:
    """Says what stands in the place of a field that does not exist, where the model is known."""
    model = body
    for part in path[:-1]:
        entry = model.model_fields.get(str(part)) if model else None
        model = entry.annotation if entry and isinstance(entry.annotation, type) else None
    if not model or not issubclass(model, BaseModel):
        return "there is no such field"
    return f"there is no such field; {suggest(str(path[-1]), list(model.model_fields))}"


def render(refusal: Refusal, scope: Mapping[str, Any]) -> Response:
    """The reply to a refused request."""
    status, title = CODES[refusal.code]
    problem = Problem(
        type=f"urn:teragpt:problem:{refusal.code}",
        title=title,
        status=status,
        detail=str(refusal.detail),
        instance=named(str(scope.get("path", ""))),
        code=refusal.code,
        errors=list(refusal.fields),
        request_id=str(scope.get("request_id", "")),
    )
    text = json.dumps(problem.model_dump() | refusal.extra)
    return Response(text, status, media_type=MEDIA_TYPE, headers=dict(refusal.headers or {}))
