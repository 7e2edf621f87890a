"""The secret of a confidential client, which is read again while Spotify refuses it."""

import asyncio
import logging
import math
from collections.abc import Callable

import httpx

from spotconn._spotify.admission import Admission
from spotconn._stopwatch import loop_time
from spotconn._tracebacks import renewed
from spotconn.errors import ConfigurationError

_log = logging.getLogger("spotconn")

READ_TIMEOUT = 5.0
"""Seconds that calls wait for one reading."""
REREAD_INTERVAL = 1.0
"""Seconds between readings for calls that are refused here, without a request."""

Secret = str | Callable[[], str]


class ClientSecret:
    """The secret of one app and the authentication with it (RFC 6749, section 2.3.1).

    A callable is called in a thread: when the secret is needed first, and again when Spotify refuses it. One reading at
    a time serves all calls that wait for it. Another secret ends the pauses of this app.

    Args:
        client_id: of the app.
        secret: as given to `SpotifyAccounts`.
        admission: of the calls of the app.

    Attributes:
        changes: how often another secret was read.
    """

    def __init__(self, client_id: str, secret: Secret | None, admission: Admission) -> None:
        self._client_id = client_id
        self._read_secret = secret if callable(secret) else None
        self._admission = admission
        self._value: str | None = None
        self._auth: httpx.BasicAuth | None = None
        self._failure: ConfigurationError | None = None
        self._reading: asyncio.Task[None] | None = None
        self._began = -math.inf
        self.changes = 0
        if isinstance(secret, str):
            self._take(secret)

    @property
    def is_confidential(self) -> bool:
        """Whether there is a secret."""
        return self._auth is not None or self._read_secret is not None

    async def auth(self) -> httpx.BasicAuth | None:
        """Return the authentication with the secret as it was last read; None for a public client.

        Raises:
            ConfigurationError: it could not be read yet; the text gives the reason.
        """
        if self._auth is None and self._read_secret is not None:
            await self._read(since=loop_time() - REREAD_INTERVAL)
            if self._auth is None:
                failure = self._failure or ConfigurationError("client_secret: reading it takes too long")
                raise renewed(failure)
        return self._auth

    async def reread(self) -> None:
        """Read the secret again while Spotify refuses it, no more than once in `REREAD_INTERVAL` seconds."""
        if self._admission.is_refused:
            await self.replace(self._auth, since=loop_time() - REREAD_INTERVAL)

    async def replace(self, refused: httpx.BasicAuth | None, *, since: float) -> bool:
        """Return whether there is another secret than the one that Spotify has refused.

        Args:
            refused: the authentication that was sent.
            since: when it was sent; a reading that began earlier does not count.
        """
        if self._auth is refused and self._read_secret is not None:
            await self._read(since)
        return self._auth is not refused

    def close(self) -> None:
        """Wait no longer for a reading that is under way."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self, since: float) -> None:
        """Wait for a reading that began after `since`, and begin it if there is none."""
        while True:
            if self._reading is None or self._reading.done():
                if self._began > since:
                    return
                self._began = loop_time()
                self._reading = asyncio.create_task(self._load())
            remaining = self._began + READ_TIMEOUT - loop_time()
            if remaining <= 0:  # also for later calls: a reading that hangs delays each of them no further
                return
            await asyncio.wait([self._reading], timeout=remaining)

    async def _load(self) -> None:
        read = self._read_secret
        if read is None:
            return
        try:
            self._take(await asyncio.to_thread(read))
        except ConfigurationError as error:
            self._failure = renewed(error)
        except Exception as error:  # noqa: BLE001  the text of another error may hold the secret
            self._failure = ConfigurationError(f"client_secret: reading it ended with {type(error).__name__}")
        else:
            self._failure = None
            return
        if self._auth is not None:
            _log.warning("the last client secret of the app %s stays in use: %s", self._client_id, self._failure)

    def _take(self, secret: str) -> None:
        # A copied value may have blank space around it, which the answer of Spotify would not name as the cause.
        if not isinstance(secret, str) or secret != secret.strip() or not secret:  # type: ignore[redundant-expr]  # pyright: ignore[reportUnnecessaryIsInstance]  callers err
            raise ConfigurationError("client_secret is empty, no text, or has blank space around it")
        if secret == self._value:
            return
        if self._value is not None:
            self.changes += 1
            self._admission.forget_refusals()
            _log.info("another client secret of the app %s was read, and is used from now on", self._client_id)
        self._value, self._auth = secret, httpx.BasicAuth(self._client_id, secret)
