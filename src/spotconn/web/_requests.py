"""What a request may ask for: whether a browser sent it for another site, and its body, bounded."""

import asyncio
import json
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from spotconn.web._problems import problem

LARGEST_BODY = 10_000
"""Octets; a callback URL has at most 8192."""
BODY_TIMEOUT = 10.0
"""Seconds that a body may take to arrive."""
FORM, JSON = "application/x-www-form-urlencoded", "application/json"


class Refused(Exception):
    """A request that is not carried out.

    Attributes:
        answer: what to answer.
    """

    def __init__(self, status: HTTPStatus, title: str, detail: str) -> None:
        super().__init__(title)
        self.answer: Response = problem(status, "bad-request", title, detail)


def check_site(request: Request, front_end: str | None) -> None:
    """Refuse a request that a browser sends for a page of another site.

    `Sec-Fetch-Site` (W3C Fetch Metadata) decides, which no page can set; browsers without it send `Origin` with what
    changes something. A program sends neither.

    Raises:
        Refused: it comes from elsewhere.
    """
    origin = request.headers.get("origin")
    if front_end is not None and origin == front_end:
        return
    match request.headers.get("sec-fetch-site"):
        case "same-origin":
            return  # whatever the origin: that of a form on a page without referrers is "null"
        case "none" if request.method in {"GET", "HEAD"}:
            return  # typed, or a bookmark
        case None if origin is None or origin in _own_origins(request):
            return
        case _:
            raise Refused(HTTPStatus.FORBIDDEN, "Refused", "This request comes from a page of another site.")


def check_window(request: Request) -> None:
    """Refuse a callback that is loaded as a frame, a picture or a script; Spotify sends a window there.

    Raises:
        Refused: it is none.
    """
    names = ("sec-fetch-dest", "sec-fetch-mode", "sec-fetch-site")
    dest, mode, site = (request.headers.get(name) for name in names)
    # A service worker of the service that passes the request on makes it an "empty" one.
    is_of_worker = dest == "empty" and (mode == "navigate" or site == "same-origin")
    if dest not in {None, "document"} and not is_of_worker:
        raise Refused(
            HTTPStatus.FORBIDDEN, "Refused", "The callback is for a window of its own; a page may POST its URL."
        )


def content_type(request: Request) -> str:
    """Return the media type of the body without parameters, in lower case; "" for none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_form(request: Request) -> dict[str, Any]:
    """Read the fields of an HTML form; of one that is there twice, the last.

    Raises:
        Refused: it is malformed, too large or too slow.
    """
    body = await _read_body(request)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20, errors="strict"))
    except ValueError:
        raise _malformed("The form could not be read.") from None


async def read_json(request: Request) -> dict[str, Any]:
    """Read an object of JSON; no body is an empty one.

    Raises:
        Refused: it is malformed, of another type, too large or too slow.
    """
    if content_type(request) not in {JSON, ""}:
        raise _unsupported()
    body = await _read_body(request)
    if body and not content_type(request):
        raise _unsupported()
    try:
        read: Any = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise _malformed("The body is no JSON.") from None
    if not isinstance(read, dict):
        raise _malformed("The body is no object of JSON.")
    return cast("dict[str, Any]", read)


def text_field(fields: dict[str, Any], name: str) -> str | None:
    """Return a text, or None where it is not there or empty.

    Raises:
        Refused: it is no text.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise _malformed(f"{name}: expected a text.")
    return value or None


def flag_field(fields: dict[str, Any], name: str) -> bool:
    """Return whether a flag is set: true in JSON, "true", "on" or "1" in a form.

    Raises:
        Refused: it is something else.
    """
    match fields.get(name):
        case True | "true" | "on" | "1":
            return True
        case None | False | "false" | "":
            return False
        case _:
            raise _malformed(f"{name}: expected true or false.")


def bad_field(name: str, expected: str) -> Refused:
    """Return the refusal of a field, whose value it does not repeat."""
    return _malformed(f"{name}: expected {expected}.")


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > LARGEST_BODY:
                    raise Refused(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        "Content too large",
                        f"Expected {LARGEST_BODY:,} octets at most.",
                    )
    except TimeoutError:
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, "Request timeout", "The body did not arrive in time.") from None
    except ClientDisconnect:
        raise _malformed("The client has gone.") from None
    return bytes(body)


def _malformed(detail: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, "Bad request", detail)


def _unsupported() -> Refused:
    return Refused(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "Unsupported media type",
        f"Expected {JSON}; /connect and /disconnect take forms, too, as {FORM}.",
    )


def _own_origins(request: Request) -> set[str]:
    # Behind a proxy that ends TLS the scheme may be http here and https in the browser.
    host = request.headers.get("host", "")
    return {f"{request.scope['scheme']}://{host}", f"https://{host}"}
