"""tekore with the token of a stored connection.

    python examples/tekore_client.py [USER_ID ...]

tekore takes no part in the tokens. It sends through an httpx.AsyncClient whose `auth` gives each request the user's
valid token and replaces one that is rejected, so a client may live as long as it likes, and neither tekore's objects
nor its errors hold a token.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

import httpx
import tekore

from demo_services import print_each, run, service
from spotconn import TokenManager

SPOTIFY = "https://api.spotify.com"


class WebApi(tekore.AsyncSender):
    """Sends tekore's requests, which name Spotify's own host, to the Web API that the tokens are for."""

    def __init__(self, http: httpx.AsyncClient, api_url: str) -> None:
        super().__init__(http)
        self._api_url = api_url

    async def send(self, request: tekore.Request) -> tekore.Response:
        """Send one; a link to a further page has the right host already."""
        if request.url.startswith(f"{SPOTIFY}/"):
            request.url = self._api_url + request.url.removeprefix(SPOTIFY)
        return await super().send(request)


@asynccontextmanager
async def client_of(tokens: TokenManager, user_id: UUID) -> AsyncGenerator[tekore.Spotify]:
    """A client that acts for one user."""
    async with httpx.AsyncClient(auth=tokens.auth(user_id), timeout=10) as http:
        yield tekore.Spotify(sender=WebApi(http, tokens.accounts.api_url), asynchronous=True)


async def listened_to(tokens: TokenManager, user_id: UUID) -> str:
    async with client_of(tokens, user_id) as spotify:
        profile = await spotify.current_user()
        tracks = await spotify.current_user_top_tracks(limit=3)
    return f"{profile.display_name} listens to {', '.join(track.name for track in tracks.items) or 'nothing yet'}"


async def main(user_ids: list[str]) -> int:
    async with service(user_ids) as (tokens, users):
        return await print_each(users, partial(listened_to, tokens))


if __name__ == "__main__":
    sys.exit(run(main))
