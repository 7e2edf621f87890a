"""spotipy with the token of a stored connection.

    python examples/spotipy_client.py [USER_ID ...]

spotipy is synchronous, so it works in a thread, while the tokens stay with the event loop that owns the TokenManager.
`StoredConnection` is the bridge: spotipy asks it for a token before each request, as it would ask one of its own auth
managers, and the thread waits for the loop's answer.

The threads are of an executor of their own, not of `asyncio.to_thread`. That one is the event loop's default executor,
where asyncio also looks up host names: threads that fill it while they wait for a token would wait for themselves, once
a token has to be refreshed.
"""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import requests
import spotipy

from demo_services import print_each, run, service
from spotconn import TokenManager, TryLater

T = TypeVar("T")

THREADS = ThreadPoolExecutor(max_workers=8, thread_name_prefix="spotipy")
"""All that blocks while it waits for a token works here."""
UNAUTHORIZED = 401
MISSING_SCOPE = b"Permissions missing"
"""In the 401 with which the player's endpoints refuse a scope; another token would be refused in the same way."""

# At DEBUG it logs the headers of each request, and the token with them.
logging.getLogger("spotipy.client").setLevel(logging.INFO)


class StoredConnection:
    """An auth manager for spotipy; make it in the event loop of the manager, and use it in other threads.

    Args:
        tokens: gives the tokens.
        user_id: whose.
        timeout: seconds that a thread waits for a token.
    """

    def __init__(self, tokens: TokenManager, user_id: UUID, *, timeout: float = 30) -> None:
        self._tokens = tokens
        self._user_id = user_id
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def get_access_token(self, *, as_dict: bool = False) -> str:
        """What spotipy asks before each request: a token that Spotify accepts now.

        Raises:
            SpotconnError: there is none to be had; `TryLater` also where it took too long.
            RuntimeError: the caller is the thread of the event loop.
        """
        if as_dict:
            raise ValueError("as_dict: there is the token only")
        return self._waited(self._tokens.get_valid_token(self._user_id))

    def repeat_rejected(self, response: requests.Response, **options: Any) -> requests.Response:
        """A hook of the session: what is refused with 401 is sent once more, with another token."""
        rejected = str(response.request.headers.get("Authorization", "")).removeprefix("Bearer ")
        if response.status_code != UNAUTHORIZED or not rejected or MISSING_SCOPE in response.content:
            return response
        request = response.request.copy()
        other = self._waited(self._tokens.replace_rejected(self._user_id, rejected))
        request.headers["Authorization"] = f"Bearer {other}"
        # The connection's own method calls no hooks: a second 401 goes to the caller.
        return response.connection.send(request, **options)

    def _waited(self, call: Coroutine[Any, Any, str]) -> str:
        if threading.get_ident() == self._thread:
            call.close()
            raise RuntimeError(
                "spotipy blocks its thread, and here the event loop would wait for itself: call it in a thread of an "
                "executor of your own, with loop.run_in_executor"
            )
        waiting = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return waiting.result(self._timeout)
        except TimeoutError:
            waiting.cancel()
        raise TryLater(f"no token within {self._timeout:g} seconds")


def client_of(tokens: TokenManager, user_id: UUID) -> spotipy.Spotify:
    """A client that acts for one user; it is for one thread at a time."""
    connection = StoredConnection(tokens, user_id)
    session = requests.Session()
    session.hooks["response"].append(connection.repeat_rejected)
    # A session of one's own also has none of spotipy's retries, which wait as long as Retry-After says.
    spotify = spotipy.Spotify(auth_manager=connection, requests_session=session, requests_timeout=10)
    spotify.prefix = f"{tokens.accounts.api_url}/v1/"
    return spotify


def listened_to(spotify: spotipy.Spotify) -> str:
    """Plain synchronous code, as a service may already have it."""
    tracks = spotify.current_user_top_tracks(limit=3)["items"]
    return f"{spotify.me()['display_name']} listens to {', '.join(track['name'] for track in tracks) or 'nothing yet'}"


async def in_thread(work: Callable[[], T]) -> T:
    """Call what blocks in a thread of `THREADS`, and wait for what it returns."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, work)


async def main(user_ids: list[str]) -> int:
    async with service(user_ids) as (tokens, users):
        return await print_each(users, lambda user: in_thread(partial(listened_to, client_of(tokens, user))))


if __name__ == "__main__":
    sys.exit(run(main))
