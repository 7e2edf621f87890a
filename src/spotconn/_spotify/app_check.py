"""Ask Spotify about an app itself, by client credentials (RFC 6749, section 4.4): no user takes part."""

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from spotconn._affinity import Affinity
from spotconn._observer import NOBODY
from spotconn._spotify.answers import read_app_answer, read_grant, seconds_until
from spotconn._spotify.authorization import basic_authorization
from spotconn._spotify.http import HttpClient
from spotconn._spotify.retry import BeginBy, may_pass, retry
from spotconn.errors import ConfigurationError, SpotifyUnavailable

ACCOUNTS_URL, API_URL = "https://accounts.spotify.com", "https://api.spotify.com"
_SEARCH = "/v1/search?q=music&type=track&limit=1"
"""A request to the Web API that needs no user, which apps in development mode may make, too."""


class ClockOffset(NamedTuple):
    """How far the clock of Spotify is ahead of this host's, in seconds, and the error of that."""

    seconds: float
    unsure: float


class AppAnswers(NamedTuple):
    """What Spotify has answered to an app.

    Attributes:
        credentials: why they gave no access token; None where they did.
        web_api: why the Web API does not serve the app; None where it does, or was not asked for want of a token.
        clock: by the Date header; None without one.
    """

    credentials: ConfigurationError | SpotifyUnavailable | None
    web_api: ConfigurationError | SpotifyUnavailable | None = None
    clock: ClockOffset | None = None


async def ask_about_app(
    client_id: str,
    client_secret: str,
    *,
    spotify_url: str | None = None,
    timeout: float,  # noqa: ASYNC109  the deadline is over all attempts
    clock: Callable[[], float] = time.time,
) -> AppAnswers:
    """Ask the accounts service for a token of the app itself, and the Web API for something with it.

    Args:
        client_id: of the app.
        client_secret: of the app.
        spotify_url: base URL of a simulated Spotify; None for Spotify itself.
        timeout: seconds for each of the two.
        clock: returns seconds since the epoch.

    Raises:
        ConfigurationError: the environment sets TLS or a proxy in a way that cannot be used.
    """
    accounts_url, api_url = spotify_url or ACCOUNTS_URL, spotify_url or API_URL
    async with _opened(accounts_url, api_url) as http:
        check = _AppCheck(http, client_id, clock)
        try:
            token = await check.token(f"{accounts_url}/api/token", client_secret, timeout)
        except (ConfigurationError, SpotifyUnavailable) as error:
            return AppAnswers(error, clock=check.offset)
        try:
            await check.search(f"{api_url}{_SEARCH}", token, timeout)
        except (ConfigurationError, SpotifyUnavailable) as error:
            return AppAnswers(None, error, check.offset)
        return AppAnswers(None, clock=check.offset)


@asynccontextmanager
async def _opened(*base_urls: str) -> AsyncGenerator[HttpClient]:
    http = HttpClient(None, Affinity("SpotifyAccounts"), *base_urls)
    try:
        yield http
    finally:
        await http.aclose()


class _AppCheck:
    """The two requests.

    Attributes:
        offset: as the first answer shows it.
    """

    def __init__(self, http: HttpClient, client_id: str, clock: Callable[[], float]) -> None:
        self._http = http
        self._client_id = client_id
        self._clock = clock
        self.offset: ClockOffset | None = None

    async def token(self, url: str, client_secret: str, seconds: float) -> str:
        """Return an access token of the app."""

        async def attempt(begin_by: BeginBy) -> str:
            sent = self._clock()
            status, headers, body = await self._http.send(
                "POST",
                url,
                begin_by=begin_by,
                observed=NOBODY.asking(self._client_id),
                headers={"Authorization": basic_authorization(self._client_id, client_secret)},
                data={"grant_type": "client_credentials"},
            )
            self.offset = clock_offset(headers, sent, self._clock())
            grant = read_grant(
                status, headers, body, now=sent, client_id=self._client_id, grant_type="client_credentials"
            )
            return grant.access_token

        return await retry(attempt, on=may_pass, timeout=seconds, begin_within=seconds / 2, clock=self._clock)

    async def search(self, url: str, token: str, seconds: float) -> None:
        """Request something of the Web API, whose answer is not read beyond its being one."""

        async def attempt(begin_by: BeginBy) -> bool:
            status, headers, body = await self._http.send(
                "GET",
                url,
                begin_by=begin_by,
                observed=NOBODY.asking(self._client_id),
                headers={"Authorization": f"Bearer {token}"},
            )
            return read_app_answer(status, headers, body, now=self._clock())

        await retry(attempt, on=may_pass, timeout=seconds, begin_within=seconds / 2, clock=self._clock)


def clock_offset(headers: Mapping[str, str], sent: float, received: float) -> ClockOffset | None:
    """Return how far the clock of the Date header is ahead, or None without a usable one.

    The header has whole seconds, and servers write it anew once a second.

    Args:
        headers: of an answer.
        sent: when the request was sent, in seconds since the epoch by the clock of this host.
        received: when the answer was there, likewise.
    """
    ahead = seconds_until(headers.get("date", ""), (sent + received) / 2)
    return None if ahead != ahead else ClockOffset(ahead + 0.5, 1 + (received - sent) / 2)  # noqa: PLR0124  NaN
