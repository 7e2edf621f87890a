"""The part of Spotify's Web API that the simulated one has: the profile and the top tracks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from spotconn.testing._rules import Reply

if TYPE_CHECKING:
    from spotconn.testing._spotify import Consent, FakeSpotify

TRACKS = (
    ("First Light over the Harbour", "The Loopback Trio", 214),
    ("Nine Lanterns", "Paper Satellites", 187),
    ("Slow Train, Open Window", "The Loopback Trio", 263),
    ("Cobalt", "Ground Control Choir", 201),
    ("What the Tide Left", "Paper Satellites", 242),
    ("Half Past Summer", "Low Season", 176),
    ("A Map of the Stairs", "Ground Control Choir", 229),
    ("Northbound", "Low Season", 198),
)
"""Title, artist and seconds of what there is to hear."""
LONGEST_PAGE = 50
"""Items of a page of the Web API."""


def web_routes(fake: "FakeSpotify") -> list[Route]:
    """The routes of api.spotify.com."""

    async def me(request: Request) -> Response:
        return _answer(fake, request, _profile)

    async def top_tracks(request: Request) -> Response:
        return _answer(fake, request, _top_tracks)

    return [
        Route("/v1/me", me, methods=["GET"]),
        Route("/v1/me/top/tracks", top_tracks, methods=["GET"]),
    ]


def _answer(fake: "FakeSpotify", request: Request, read: Callable[["Consent", Request], Reply]) -> Response:
    """What `read` makes of the token's consent, or the fault of the token."""
    bearer = fake.bearer(request.headers.get("authorization"))
    if isinstance(bearer, str):
        return PlainTextResponse(bearer, 403)
    status, body = bearer if isinstance(bearer, tuple) else read(bearer, request)
    return JSONResponse(body, status)


def _profile(consent: "Consent", _request: Request) -> Reply:
    account = consent.account
    body: dict[str, Any] = {"id": account.spotify_user_id, "display_name": account.display_name, "images": []}
    if "user-read-email" in consent.scope and account.email:
        body["email"] = account.email
    return 200, body


def _top_tracks(consent: "Consent", request: Request) -> Reply:
    if "user-top-read" not in consent.scope:
        return 403, {"error": {"status": 403, "message": "Insufficient client scope"}}
    asked = request.query_params.get("limit", "20")
    if not (asked.isascii() and asked.isdigit() and 1 <= int(asked[:4]) <= LONGEST_PAGE):
        return 400, {"error": {"status": 400, "message": "Invalid limit"}}
    # Each account has another order, always the same.
    first = sum(consent.account.spotify_user_id.encode()) % len(TRACKS)
    items = [_track(*track) for track in (TRACKS[first:] + TRACKS[:first])[: int(asked)]]
    return 200, {"items": items, "total": len(TRACKS), "limit": int(asked), "offset": 0}


def _track(name: str, artist: str, seconds: int) -> dict[str, Any]:
    return {"type": "track", "name": name, "artists": [{"name": artist}], "duration_ms": seconds * 1000}
