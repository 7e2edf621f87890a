"""What the pages do with connections, and the words for what goes wrong."""

import logging
from dataclasses import dataclass
from uuid import UUID

import httpx

from music import Track, top_tracks
from spotconn import (
    AskUser,
    ConnectFlow,
    ConnectionStatus,
    ReauthorizationRequired,
    SpotconnError,
    TokenManager,
    TryLater,
)

_log = logging.getLogger("profile_app")

FAILED = {
    "denied": "You did not agree at Spotify. Nothing has changed.",
    "state_mismatch": "This answer does not belong to a connect that you started here. Nothing has changed.",
    "state_used": "This answer was used before, or you have disconnected since. Please look at your connection below.",
    "state_expired": "That took too long. Nothing has changed; please start again.",
    "code_rejected": "Spotify did not accept the answer. Nothing has changed; please start again.",
    "not_allowed": "Spotify does not let this account use the app. Its operators can add it in Spotify's dashboard.",
    "unknown_user": "There is no such user any more. Nothing has changed.",
    "try_later": "That does not work at the moment. Nothing has changed; please try again later.",
    "error": "Something is wrong with this service. Its operators have to look into it.",
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
        apps_url: where a user ends the consent itself.
    """

    tokens: TokenManager
    flow: ConnectFlow
    http: httpx.AsyncClient
    users: dict[str, UUID]
    host: str
    secure: bool = False
    spotify_url: str = "https://accounts.spotify.com"
    apps_url: str = "https://www.spotify.com/account/apps/"

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
            return await top_tracks(self.tokens, self.http, user_id)
        except ReauthorizationRequired:
            return []
        except SpotconnError as error:
            return words(error)


def outcome_words(outcome: str | None, status: ConnectionStatus) -> tuple[str, str] | None:
    """The notice of an outcome of a connect or disconnect: its tone and words.

    The outcome is from the URL, where anybody may write it: it chooses words, and no more.
    """
    if outcome == "connected" and status.connected:
        return "good", f"Connected to {status.display_name or status.spotify_user_id}."
    if outcome == "disconnected" and not status.connected:
        return "good", DISCONNECTED
    return ("bad", FAILED[outcome]) if outcome in FAILED else None


def words(error: SpotconnError) -> str:
    """What to tell the user."""
    match error:
        case AskUser():
            return "Please connect Spotify again."
        case TryLater():
            return FAILED["try_later"]
        case _:
            _log.error("%s: %s", type(error).__name__, error)
            return FAILED["error"]
