"""A call of Spotify's Web API with a user's token."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx

from spotconn import SpotifyUnavailable, TokenManager

SCOPE = "user-top-read"
UNAUTHORIZED = 401


@dataclass(frozen=True)
class Track:
    """A piece of music."""

    name: str
    artists: str
    seconds: int


async def top_tracks(tokens: TokenManager, http: httpx.AsyncClient, user_id: UUID) -> list[Track]:
    """What a user listens to most.

    Raises:
        SpotconnError: there is no token for it, or Spotify gave no answer to it.
    """
    token = await tokens.get_valid_token(user_id, scopes=[SCOPE])
    answer = await _ask(http, token)
    if answer.status_code == UNAUTHORIZED:
        answer = await _ask(http, await tokens.replace_rejected(user_id, token))
    if not answer.is_success:
        raise SpotifyUnavailable(f"Spotify answered with status {answer.status_code}")
    return [_track(item) for item in answer.json()["items"]]


async def _ask(http: httpx.AsyncClient, token: str) -> httpx.Response:
    try:
        return await http.get("/v1/me/top/tracks", params={"limit": 5}, headers={"Authorization": f"Bearer {token}"})
    except httpx.RequestError as error:
        failure = SpotifyUnavailable(f"no answer from Spotify: {type(error).__name__}", answered=False)
    # Not raised from the error itself, which holds the request and with it the token.
    raise failure


def _track(item: dict[str, Any]) -> Track:
    artists = ", ".join(artist["name"] for artist in item["artists"])
    return Track(name=item["name"], artists=artists, seconds=item["duration_ms"] // 1000)
