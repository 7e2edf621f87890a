"""The secret of a confidential client, which is read again while Spotify refuses it."""

import asyncio
import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future

from spotconn._spotify.admission import Admission
from spotconn._spotify.authorization import basic_authorization
from spotconn._spotify.marks import Mark, marked
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

    A callable is called in a thread of its own: when the secret is needed first, and again when Spotify refuses it. One
    reading at a time serves all calls that wait for it. Another secret ends the pauses of this app.

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
        self._auth: str | None = None
        self._failure: ConfigurationError | None = None
        self._reading: asyncio.Task[None] | None = None
        self._began = -math.inf
        self.changes: int = 0
        if secret is not None and not callable(secret) and (problem := self._take(secret)) is not None:
            raise problem

    @property
    def is_confidential(self) -> bool:
        """Whether there is a secret."""
        return self._auth is not None or self._read_secret is not None

    async def auth(self) -> str | None:
        """Return the Authorization header with the secret as it was last read; None for a public client.

        Raises:
            ConfigurationError: it could not be read yet; the text gives the reason.
        """
        if self._auth is None and self._read_secret is not None:
            await self._read(since=loop_time() - REREAD_INTERVAL)
            if self._auth is None:
                failure = self._failure or ConfigurationError("client_secret: reading it takes too long")
                raise marked(renewed(failure), Mark.NOT_PROCESSED, Mark.OF_ONE_APP)
        return self._auth

    async def reread(self) -> None:
        """Read the secret again while Spotify refuses it, no more than once in `REREAD_INTERVAL` seconds."""
        if self._admission.is_refused:
            await self.replace(self._auth, since=loop_time() - REREAD_INTERVAL)

    async def replace(self, refused: str | None, *, since: float) -> bool:
        """Return whether there is another secret than the one that Spotify has refused.

        Args:
            refused: the Authorization header that was sent.
            since: when it was sent; a reading that began earlier does not count.
        """
        if self._auth == refused and self._read_secret is not None:
            await self._read(since)
        return self._auth != refused

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
        if self._read_secret is None:
            return
        self._failure = self._take(await _in_thread(self._read_secret))
        if self._failure is not None and self._auth is not None:
            _log.warning("the last client secret of the app %s stays in use: %s", self._client_id, self._failure)

    def _take(self, secret: str | ConfigurationError) -> ConfigurationError | None:
        """Use a secret from now on, or return why that is not possible."""
        if isinstance(secret, ConfigurationError):
            return secret
        # A copied value may have blank space around it, which the answer of Spotify would not name as the cause. What
        # is not printable can be no secret, and a lone surrogate could not even be sent.
        if not isinstance(secret, str) or secret != secret.strip() or not secret or not secret.isprintable():  # type: ignore[redundant-expr]  # pyright: ignore[reportUnnecessaryIsInstance]  callers err
            return ConfigurationError("client_secret is empty, no text, or has blank space around it")
        if secret == self._value:
            return None
        if self._value is not None:
            self.changes += 1
            self._admission.forget_refusals()
            _log.info("another client secret of the app %s was read, and is used from now on", self._client_id)
        self._value, self._auth = secret, basic_authorization(self._client_id, secret)
        return None


async def _in_thread(read: Callable[[], str]) -> str | ConfigurationError:
    """Call a function in a thread of its own, and return what it returns or the error for what it raises.

    The threads of the event loop's executor may all wait for something else, and the process waits for them at its end.
    """
    outcomes: list[str | ConfigurationError] = []  # no result of a future, whose repr shows it
    ended = Future[None]()
    ended.set_running_or_notify_cancel()

    def run() -> None:
        outcomes.append(_outcome(read))
        ended.set_result(None)

    try:
        threading.Thread(target=run, name="spotconn-secret", daemon=True).start()
    except RuntimeError:
        return ConfigurationError("client_secret: this process can start no thread to read it")
    await asyncio.wrap_future(ended)
    return outcomes[0]


def _outcome(read: Callable[[], str]) -> str | ConfigurationError:
    try:
        return read()
    except ConfigurationError as error:
        return renewed(error)
    except BaseException as error:  # noqa: BLE001  also SystemExit; the text of another error may hold the secret
        return ConfigurationError(f"client_secret: reading it ended with {type(error).__name__}")
