"""Reads a request's query and body: nothing unknown; JSON only, bounded, and free of values that no field could hold.

JSON as Python reads it is wider than JSON as others do: NaN and Infinity, integers of any length, halves of surrogate
pairs. They are refused here with a pointer, so that nothing behind has to think of them.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from controlplane.api.problems import FieldProblem, Refusal, invalid, pointer, suggest
from controlplane.domain.complaints import shorten

if TYPE_CHECKING:
    from fastapi._compat import ModelField

DEEPEST = 32  # levels of nesting; a run's spec has four
LARGEST_INTEGER = (1 << 63) - 1
MOST_REPORTED = 100
BODY_S = 60.0  # for the whole of a body: who never ends one would hold a connection for ever
DRAINED, DRAIN_S = 64 << 20, 1.0  # bytes and seconds that a refused body may go on

Path = tuple[str | int, ...]


class JsonRoute(APIRoute):
    """A route whose body is read by `JsonRequest`, and which knows no parameter and no body that it does not use."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given our request."""
        handler = super().get_route_handler()
        headers = [each.alias for each in _parameters(self.dependant, "header_params")]
        known = {
            each.alias: _is_list(each.field_info.annotation) for each in _parameters(self.dependant, "query_params")
        }

        async def handle(request: Request) -> Response:
            if unknown := [name for name in request.query_params if name not in known]:
                raise invalid([_unknown_parameter(name, list(known)) for name in unknown])
            times = Counter(name for name, _ in request.query_params.multi_items())
            if repeated := [name for name, count in times.items() if count > 1 and not known[name]]:
                raise invalid([_repeated(f"?{name}", times[name]) for name in repeated])
            if several := [name for name in headers if len(request.headers.getlist(name)) > 1]:
                raise invalid([_repeated(f"header:{name}", len(request.headers.getlist(name))) for name in several])
            if odd := [*_odd_parameters(request)]:
                raise invalid(odd)
            ours = JsonRequest(request.scope, request.receive)
            if self.body_field is None and request.method == "POST":
                await ours.refuse_body()
            return await handler(ours)

        return handle


class JsonRequest(Request):
    """A request with a bounded body that is JSON."""

    async def body(self) -> bytes:
        """The body. Raises Refusal as soon as it is known to be too large, without reading on, or not to be JSON."""
        if not hasattr(self, "_bytes"):
            self._bytes = await self._read()
        return self._bytes

    async def json(self) -> Any:
        """The body's value. Raises Refusal."""
        return parse(await self.body())

    async def refuse_body(self) -> None:
        """For an address that takes no body: raises Refusal for any but an empty one, or an empty object."""
        body = await self.body()
        value = parse(body) if body.strip() else None
        if value:
            names = list(value) if isinstance(value, dict) else [None]
            where = [pointer(() if name is None else (name,)) for name in names[:MOST_REPORTED]]
            detail = "this address takes no body; leave it out"
            raise invalid([FieldProblem(pointer=place, code="unknown_field", detail=detail) for place in where])

    async def _drain(self) -> None:
        """Throw the rest of a body away, up to a bound: many clients read no reply before they have sent all."""
        left = DRAINED
        with suppress(TimeoutError, RuntimeError, ClientDisconnect):  # late, already read, or gone
            async with asyncio.timeout(DRAIN_S):
                async for chunk in self.stream():
                    left -= len(chunk)
                    if left < 0:
                        return

    async def _read(self) -> bytes:
        limit = cast("int", self.app.state.settings.max_body_bytes)
        length = self.headers.get("content-length", "0")
        body = b""
        if length.isdigit() and int(length) <= limit:
            try:
                async with asyncio.timeout(BODY_S):
                    async for chunk in self.stream():
                        body += chunk
                        if len(body) > limit:
                            break
            except TimeoutError:
                raise late() from None
        if len(body) > limit or not length.isdigit() or int(length) > limit:
            await self._drain()
            detail = f"a body may have {limit:,} bytes; this one has more"
            raise Refusal("body_too_large", detail, headers={"connection": "close"})
        if body and (coding := self.headers.get("content-encoding", "identity").strip().lower()) != "identity":
            raise Refusal("unsupported_media_type", f"got content-encoding {coding}; allowed: none")
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json":
            detail = f"got content-type {kind or 'none'}; allowed: application/json"
            raise Refusal("unsupported_media_type", detail)
        return body


def late() -> Refusal:
    """The refusal of a body that has not come whole in time."""
    return Refusal("body_late", f"a body may take {BODY_S:g} s to come whole", headers={"connection": "close"})


def _parameters(dependant: Dependant, kind: Literal["query_params", "header_params"]) -> Iterator[ModelField]:
    """The parameters of a kind of a route and of what it depends on."""
    yield from getattr(dependant, kind)
    for each in dependant.dependencies:
        yield from _parameters(each, kind)


def _is_list(annotation: Any) -> bool:
    """Whether a parameter of this type may come several times."""
    return get_origin(annotation) is list or any(_is_list(each) for each in get_args(annotation))


def _odd_parameters(request: Request) -> Iterator[FieldProblem]:
    """Texts of an address that nothing stores, and at which a store would stumble."""
    queried = ((f"?{name}", value) for name, value in request.query_params.multi_items())
    routed = ((f"path:{name}", value) for name, value in request.path_params.items())
    for place, value in (*queried, *routed):
        if problem := _odd(value):
            yield FieldProblem(pointer=place, code="invalid_value", detail=problem)


def _unknown_parameter(name: str, known: Sequence[str]) -> FieldProblem:
    detail = f"there is no such parameter; {suggest(name, known)}"
    return FieldProblem(pointer=f"?{shorten(name)}", code="unknown_parameter", detail=detail)


def _repeated(place: str, times: int) -> FieldProblem:
    return FieldProblem(pointer=place, code="repeated_parameter", detail=f"got it {times} times; allowed: once")


def parse(body: bytes) -> Any:
    """The value of a JSON text. Raises Refusal: 400 where it is no JSON, 422 with pointers for values beyond it."""
    if (coding := json.detect_encoding(body)) not in {"utf-8", "utf-8-sig"}:  # which Python would read all the same
        raise Refusal("invalid_json", f"got text in {coding.upper()}; allowed: UTF-8")
    try:
        value = json.loads(body, object_pairs_hook=objects)
    except RecursionError:
        raise Refusal("invalid_json", f"nested deeper than {DEEPEST} levels") from None
    except UnicodeDecodeError as error:
        raise Refusal("invalid_json", f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise Refusal("invalid_json", f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError:  # Python reads integers up to 4,300 digits
        raise Refusal("invalid_json", "a number has thousands of digits") from None
    errors = [problem for problem, _ in zip(oddities(value), range(MOST_REPORTED), strict=False)]
    if errors:
        raise invalid(errors)
    return value


class Repeated(dict[str, Any]):
    """An object with the keys `names` more than once, of which only the last values are here."""

    names: tuple[str, ...]


def objects(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as JSON's reader has found it: Repeated where a key came more than once."""
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    repeated = Repeated(made)
    repeated.names = tuple(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return repeated


def oddities(value: Any, path: Path = ()) -> Iterator[FieldProblem]:
    """Values inside `value` that JSON's other readers would not take, or that nothing stores."""
    if isinstance(value, dict | list):
        if len(path) >= DEEPEST:
            yield FieldProblem(
                pointer=pointer(path), code="too_deep", detail=f"got more; allowed: {DEEPEST} levels of nesting"
            )
            return
        for name in value.names if isinstance(value, Repeated) else ():
            yield FieldProblem(
                pointer=pointer((*path, name)), code="repeated_key", detail="got it more than once; allowed: once"
            )
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            if isinstance(key, str) and (problem := _odd(key)):
                yield FieldProblem(pointer=pointer(path), code="invalid_key", detail=f"a key: {problem}")
            elif isinstance(entry, dict | list):
                yield from oddities(entry, (*path, key))
            elif problem := _odd(entry):
                yield FieldProblem(pointer=pointer((*path, key)), code="invalid_value", detail=problem)
    elif problem := _odd(value):
        yield FieldProblem(pointer=pointer(path), code="invalid_value", detail=problem)


def _odd(value: Any) -> str | None:
    """What is odd about one value."""
    if isinstance(value, str):
        if "\0" in value:
            return "got a NUL character; allowed: any other"
        return None if value.isascii() or _encodes(value) else "got half of a surrogate pair; allowed: whole characters"
    if isinstance(value, float) and not math.isfinite(value):
        return f"got {value}; allowed: finite numbers"
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return f"got {shorten(str(value))}; allowed: integers of 64 bits"
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
