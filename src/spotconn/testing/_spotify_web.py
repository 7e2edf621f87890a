"""The simulated part of Spotify's Web API: the profile and the top tracks."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from spotconn.testing._catalogue import tracks_of, user
from spotconn.testing._issued_tokens import Consent
from spotconn.testing._rules import Reply
from spotconn.testing._simulation import Simulation

LONGEST_PAGE = 50
"""Items of a page of the Web API."""


def web_routes(spotify: Simulation) -> list[Route]:
    """Return the routes of api.spotify.com."""

    async def me(request: Request) -> Response:
        return _answer(spotify, request, _profile)

    async def top_tracks(request: Request) -> Response:
        return _answer(spotify, request, _top_tracks)

    return [
        Route("/v1/me", me, methods=["GET"]),
        Route("/v1/me/", me, methods=["GET"]),  # as tekore and spotipy request it
        Route("/v1/me/top/tracks", top_tracks, methods=["GET"]),
    ]


def _answer(spotify: Simulation, request: Request, read: Callable[[Consent, Request], Reply]) -> Response:
    """Return what `read` returns for the consent behind the token, or the error of the token."""
    bearer = spotify.bearer(request.headers.get("authorization"))
    if isinstance(bearer, str):
        return PlainTextResponse(bearer, 403)
    status, body = bearer if isinstance(bearer, tuple) else read(bearer, request)
    return JSONResponse(body, status)


def _profile(consent: Consent, _request: Request) -> Reply:
    account = consent.account
    email = account.email if "user-read-email" in consent.scope else None
    return 200, user(account.spotify_user_id, account.display_name, email or None)


def _top_tracks(consent: Consent, request: Request) -> Reply:
    if "user-top-read" not in consent.scope:
        return 403, {"error": {"status": 403, "message": "Insufficient client scope"}}
    limit, offset = _number(request, "limit", 20), _number(request, "offset", 0)
    if limit is None or not 1 <= limit <= LONGEST_PAGE:
        return 400, {"error": {"status": 400, "message": "Invalid limit"}}
    if offset is None:
        return 400, {"error": {"status": 400, "message": "Invalid offset"}}
    tracks = tracks_of(consent.account.spotify_user_id)
    return 200, {
        "href": str(request.url),
        "items": tracks[offset : offset + limit],
        "limit": limit,
        "next": _page(request, offset + limit) if offset + limit < len(tracks) else None,
        "offset": offset,
        "previous": _page(request, max(0, offset - limit)) if offset else None,
        "total": len(tracks),
    }


def _number(request: Request, name: str, default: int) -> int | None:
    """Return a number of at most four digits from the query, or None if the value is no such number."""
    text = request.query_params.get(name, str(default))
    return int(text) if text.isascii() and text.isdigit() and len(text) <= len("9999") else None


def _page(request: Request, offset: int) -> str:
    return str(request.url.include_query_params(offset=offset))
