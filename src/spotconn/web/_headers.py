"""The headers of each answer: no cache, no referrer, no frame, and CORS for a front end of another origin."""

from collections.abc import Iterable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

PREFLIGHT_LIFE = 600
"""Seconds for which a browser may remember what a preflight has allowed."""

_ALWAYS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
}


def add_headers(request: Request, response: Response, front_end: str | None) -> None:
    """Add the headers that each answer has to `response`."""
    for name, value in _ALWAYS.items():
        response.headers[name] = value
    if front_end is None or _is_own(request, front_end):
        return
    response.headers.add_vary_header("Origin")
    if request.headers.get("origin") == front_end:
        response.headers["Access-Control-Allow-Origin"] = front_end
        # A front end of the same site has its session and the flow's cookie with it.
        response.headers["Access-Control-Allow-Credentials"] = "true"
        response.headers["Access-Control-Expose-Headers"] = "Retry-After"


def options(request: Request, methods: Iterable[str], front_end: str | None) -> Response:
    """Answer OPTIONS, and a preflight of the front end with what it may send."""
    allowed = ", ".join(methods)
    response = Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": allowed})
    origin = request.headers.get("origin")
    if front_end is not None and origin == front_end and "access-control-request-method" in request.headers:
        response.headers["Access-Control-Allow-Methods"] = allowed
        response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type"
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_LIFE)
    return response


def _is_own(request: Request, front_end: str) -> bool:
    """Return whether the front end has the origin of this service, for which browsers need no CORS."""
    return request.headers.get("host", "") == front_end.partition("://")[2]
