"""The simulated part of Spotify's Web API: profile, top tracks, search for apps, and what a test puts in its place."""

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from spotconn.testing._catalogue import search, tracks_of, user
from spotconn.testing._issued_tokens import Consent
from spotconn.testing._rules import Reply
from spotconn.testing._scripted import Scripted
from spotconn.testing._simulation import Simulation

LONGEST_PAGE = 50
"""Items of a page of the Web API."""
NOT_SIMULATED = "Service not found: the simulated Spotify has no such endpoint; FakeSpotify.on gives it one"


class WebApi:
    """The ASGI app of api.spotify.com: the token is looked at before anything else."""

    def __init__(self, spotify: Simulation) -> None:
        self._spotify = spotify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the error of the token, a scripted answer, the simulated part or the app of a test."""
        request = Request(scope)
        authorization = request.headers.get("authorization")
        bearer = self._spotify.bearer(authorization)
        if self._spotify.is_of_app(authorization):
            app: ASGIApp = self._app_without_user(request)
        elif isinstance(bearer, str):
            app = PlainTextResponse(bearer, 403)
        elif isinstance(bearer, tuple):
            app = _json(bearer)
        else:
            app = self._app(bearer, request)
        await app(scope, receive, send)

    def _app_without_user(self, request: Request) -> ASGIApp:
        path = request.url.path.rstrip("/")
        if scripted := self._spotify.web_answer(request.method, path):
            return Scripted(scripted)
        if (request.method, path) == ("GET", "/v1/search"):
            return _json((200, search(request.query_params.get("q", ""))))
        return _json((401, {"error": {"status": 401, "message": "Valid user authentication required"}}))

    def _app(self, consent: Consent, request: Request) -> ASGIApp:
        path = request.url.path.rstrip("/")  # tekore and spotipy request /v1/me/
        if scripted := self._spotify.web_answer(request.method, path):
            return Scripted(scripted)
        if (request.method, path) == ("GET", "/v1/me"):
            return _json(_profile(consent))
        if self._spotify.web_app is not None:
            request.state.spotify_user_id = consent.account.spotify_user_id
            request.state.scopes = consent.scope
            return self._spotify.web_app
        if (request.method, path) == ("GET", "/v1/me/top/tracks"):
            return _json(_top_tracks(consent, request))
        return _json((404, {"error": {"status": 404, "message": NOT_SIMULATED}}))


def _json(reply: Reply) -> Response:
    status, body = reply
    return JSONResponse(body, status)


def _profile(consent: Consent) -> Reply:
    return 200, user(consent.account, consent.scope)


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
