"""What a call may end in, other than its reply; and how a refusal is read."""

from __future__ import annotations

from typing import cast

import httpx

from controlplane.replies import JsonObject


class ClientError(Exception):
    """The call did not work; the text is one sentence for a person."""


class Unreachable(ClientError):
    """Nobody answers at `url`."""

    def __init__(self, url: str, cause: Exception) -> None:
        self.url = url
        super().__init__(f"no control plane answers at {url} ({str(cause) or type(cause).__name__})")


class ApiError(ClientError):
    """The API refused the call. `errors` holds `{pointer, code, detail}` of every bad field."""

    def __init__(self, problem: JsonObject) -> None:
        self.problem = problem
        self.status = int(problem.get("status", 500))
        self.code = str(problem.get("code", "unknown"))
        self.errors = cast("list[dict[str, str]]", problem.get("errors") or [])
        fields = "".join(f"\n  {error['pointer'] or '(body)'}: {error['detail']}" for error in self.errors)
        super().__init__(f"{problem.get('detail') or problem.get('title')}{fields}")


def refusal(response: httpx.Response) -> ApiError:
    """The reply's problem document, or one that says what came instead of it. The reply has been read."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "status" in problem:
        return ApiError(problem)
    detail = f"{response.url} answered {response.status_code} {response.reason_phrase} without a problem document"
    title = "Unexpected reply"
    return ApiError({"status": response.status_code, "code": "unexpected_reply", "title": title, "detail": detail})
