"""The errors of the library as answers of a web service: problem details (RFC 9457)."""

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from spotconn._printable import counted
from spotconn.errors import (
    AskUser,
    ConnectFailed,
    MissingScope,
    ReauthorizationRequired,
    SpotconnError,
    TryLater,
    UnknownUser,
)

RETRY_AFTER = 5
"""Seconds to wait where nothing better is known."""

_log = logging.getLogger("spotconn.web")


async def problem_details(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001  an exception handler
    """Answer an error of the library. Exception handler for `SpotconnError`, in Starlette and FastAPI.

    AskUser is 409 with what the user has to do; `reason` and `scope` say more where the error does, and UnknownUser
    has a `type` of its own. TryLater is 503 with Retry-After in whole seconds, and 429 where it is this user who has
    started too many authorizations. CallEngineer is 500 without a word of the inside. The logger `spotconn.web`
    has it as critical, a TryLater as a warning, and ConnectFailed and UnknownUser as information.

    Raises:
        Exception: `error` itself, if it is none of the library.
    """
    if not isinstance(error, SpotconnError):
        raise error
    log_error(error)
    match error:
        case UnknownUser():
            return problem(HTTPStatus.CONFLICT, "unknown-user", "There is no such user", "Sign up, or sign in again.")
        case AskUser():
            return problem(
                HTTPStatus.CONFLICT, "connect-spotify", "Spotify has to be connected", str(error), **_more(error)
            )
        case TryLater():
            return _try_later(error)
        case _:
            return problem(
                HTTPStatus.INTERNAL_SERVER_ERROR, "out-of-order", "This service is out of order", "It has been logged."
            )


def log_error(error: SpotconnError) -> None:
    """Log what an engineer has to mend as critical, what passes as a warning, and why a connect failed as information.

    Users who are not connected, or whose connection has ended, are everyday and not logged.
    """
    match error:
        case ConnectFailed() | UnknownUser():
            level = logging.INFO
        case AskUser():
            return
        case TryLater():
            level = logging.WARNING
        case _:
            level = logging.CRITICAL
    _log.log(level, "%s: %s", type(error).__name__, error)


def problem(status: HTTPStatus, name: str, title: str, detail: str, **members: str) -> JSONResponse:
    """Make an answer of RFC 9457.

    Args:
        status: of the answer.
        name: ends the URI of its type, which is a name and leads nowhere.
        title: the same for each problem of the type.
        detail: what is special to this one; "" for nothing.
        members: further ones of the body.
    """
    body = {"type": f"tag:spotconn,2026:{name}", "title": title, "status": int(status)}
    body |= ({"detail": detail} if detail else {}) | members
    return JSONResponse(body, status, {"Cache-Control": "no-store"}, media_type="application/problem+json")


def _try_later(error: TryLater) -> JSONResponse:
    seconds = max(1, math.ceil(RETRY_AFTER if error.retry_after is None else error.retry_after))
    # The class itself is raised for a user who has begun too often; what concerns all has a class of its own.
    status = HTTPStatus.TOO_MANY_REQUESTS if type(error) is TryLater else HTTPStatus.SERVICE_UNAVAILABLE
    answer = problem(status, "try-later", "Not possible just now", f"Please try again in {counted(seconds, 'second')}.")
    answer.headers["Retry-After"] = str(seconds)
    return answer


def _more(error: AskUser) -> Mapping[str, str]:
    match error:
        case ConnectFailed() | ReauthorizationRequired():
            return {"reason": error.reason}
        case MissingScope():
            return {"scope": " ".join(sorted(error.scopes))}
        case _:
            return {}


_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "reason": {"type": "string"},
        "scope": {"type": "string"},
    },
}
_RETRY_AFTER: dict[str, Any] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}


def _described(description: str, headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _SCHEMA}}
    return {"description": description, "content": content} | ({"headers": dict(headers)} if headers else {})


PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    409: _described("The user has to connect Spotify, again or with more scopes; or there is no such user."),
    429: _described("This user has started too many authorizations.", _RETRY_AFTER),
    500: _described("The service is out of order; its log says why."),
    503: _described("Spotify or the database does not answer just now.", _RETRY_AFTER),
}
"""What `problem_details` answers, for `responses=` of FastAPI."""
