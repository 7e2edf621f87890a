"""What the pages do with connections, and the words for what goes wrong."""

import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import httpx
from starlette.datastructures import URL

from music import Track, top_tracks
from sessions import Session
from spotconn import (
    AskUser,
    ConnectFailed,
    ConnectFlow,
    ConnectionStatus,
    ReauthorizationRequired,
    SpotconnError,
    TokenManager,
    TryLater,
)

T = TypeVar("T")

_log = logging.getLogger("profile_app")

FAILED = {
    "denied": "You did not agree at Spotify. Nothing has changed.",
    "state_mismatch": "This answer does not belong to a connect that you started here. Nothing has changed.",
    "state_used": "This answer was used before, or you have disconnected since. Please look at your connection below.",
    "state_expired": "That took too long. Nothing has changed; please start again.",
    "code_rejected": "Spotify did not accept the answer. Nothing has changed; please start again.",
}
DISCONNECTED = (
    "Disconnected: the tokens are deleted here. Spotify keeps your consent until you remove the app at "
    "www.spotify.com/account/apps."
)


@dataclass(frozen=True)
class Service:
    """What the pages work with.

    Attributes:
        tokens: gives the access tokens.
        flow: connects.
        http: for the Web API.
        users: who may sign in: names and ids.
        host: of the redirect URI.
        secure: whether the browser comes by https.
        spotify_url: where a connect sends the browser.
        api_url: of the Web API.
        apps_url: where a user ends the consent itself.
    """

    tokens: TokenManager
    flow: ConnectFlow
    http: httpx.AsyncClient
    users: dict[str, UUID]
    host: str
    secure: bool = False
    spotify_url: str = "https://accounts.spotify.com"
    api_url: str = "https://api.spotify.com"
    apps_url: str = "https://www.spotify.com/account/apps/"

    async def start(self, user_id: UUID, session: Session, *, again: bool) -> str:
        """Where to send the browser; on a reconnect Spotify asks again, so that another account can be chosen."""
        return await self._noted(session, self.flow.start(user_id, show_dialog=again)) or "/profile"

    async def finish(self, user_id: UUID, session: Session, callback_url: URL) -> None:
        """Save the connection that the browser comes back with."""
        connection = await self._noted(session, self.flow.finish(user_id, callback_url))
        if connection is not None:
            session.notice = ("good", f"Connected to {connection.display_name or connection.spotify_user_id}.")

    async def disconnect(self, user_id: UUID, session: Session) -> None:
        """Delete the connection."""
        if await self._noted(session, self.tokens.disconnect(user_id)) is not None:
            session.notice = ("good", DISCONNECTED)

    async def view(self, user_id: UUID) -> tuple[ConnectionStatus, list[Track] | str]:
        """The connection as it is once its token was used, and the user's tracks or why there are none.

        Raises:
            SpotconnError: not even the connection could be read.
        """
        tracks = await self._tracks(user_id)
        return await self.tokens.status(user_id), tracks

    async def _tracks(self, user_id: UUID) -> list[Track] | str:
        if not (await self.tokens.status(user_id)).connected:
            return []
        try:
            return await top_tracks(self.tokens, self.http, self.api_url, user_id)
        except ReauthorizationRequired:
            return []
        except SpotconnError as error:
            return words(error)

    async def _noted(self, session: Session, call: Awaitable[T]) -> T | None:
        """Await a call; its failure becomes the notice of the next page."""
        try:
            return await call
        except SpotconnError as error:
            session.notice = ("bad", words(error))
            return None


def words(error: SpotconnError) -> str:
    """What to tell the user."""
    match error:
        case ConnectFailed():
            return FAILED.get(error.reason) or f"Spotify does not let this account use the app. Its words: {error}"
        case AskUser():
            return "Please connect Spotify again."
        case TryLater():
            return "That does not work at the moment. Nothing has changed; please try again later."
        case _:
            _log.error("%s: %s", type(error).__name__, error)
            return "Something is wrong with this service. Its operators have to look into it."
