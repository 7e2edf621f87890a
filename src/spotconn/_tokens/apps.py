"""The apps of a manager: which of them refreshes a connection, and what there is to say where none does."""

from collections.abc import Callable, Iterable
from typing import NamedTuple
from uuid import UUID

from spotconn._arguments import several
from spotconn._observer import Observer
from spotconn._spotify.app_answers import SERVES_NOBODY
from spotconn._stopwatch import Stopwatch
from spotconn._tracebacks import renewed
from spotconn.accounts import SpotifyAccounts
from spotconn.errors import (
    ConfigurationError,
    OtherApp,
    ReauthorizationRequired,
    SpotconnError,
    SpotifyUnavailable,
)
from spotconn.events import AppRefusal
from spotconn.models import Connection, TokenGrant


class Granted(NamedTuple):
    """A grant of Spotify.

    Attributes:
        grant: as Spotify gave it.
        client_id: of the app with which it was requested.
        requested: runs since then.
    """

    grant: TokenGrant
    client_id: str
    requested: Stopwatch


class NotGranted(NamedTuple):
    """What came of a request without a grant.

    Attributes:
        refused_by: the apps with which Spotify refused the refresh token.
        error: why another app got no answer; None where all that were tried were refused.
    """

    refused_by: tuple[str, ...]
    error: SpotifyUnavailable | ConfigurationError | None


class Apps:
    """The apps with which a process refreshes connections.

    Args:
        accounts: the app of new connections.
        others: further apps.
        retired: client ids of apps that the operator has given up for good.

    Attributes:
        accounts: all of them, by client id.
        retired: as given.

    Raises:
        ValueError: an app is named twice, or `retired` is a single string.
    """

    def __init__(self, accounts: SpotifyAccounts, others: Iterable[SpotifyAccounts], retired: Iterable[str]) -> None:
        self.accounts = {accounts.client_id: accounts}
        for other in others:
            if other.client_id in self.accounts:
                raise ValueError(f"other_apps: the app {other.client_id} is given twice")
            self.accounts[other.client_id] = other
        self.retired = frozenset(several(retired, name="retired_client_ids"))
        if both := self.retired & self.accounts.keys():
            raise ValueError(f"retired_client_ids: the app {min(both)} is one of those that refresh")

    def observe(self, observer: Observer) -> None:
        """Report to an observer."""
        for accounts in self.accounts.values():
            accounts.observer = observer

    @property
    def secret_changes(self) -> int:
        """How often another client secret of any of the apps was read."""
        return sum(accounts.secret.changes for accounts in self.accounts.values())

    async def reread_secrets(self) -> None:
        """Read the client secrets again that Spotify refuses, each no more than once a second."""
        for accounts in self.accounts.values():
            await accounts.secret.reread()

    def check(self) -> None:
        """Check that all apps are open, and belong to this process and event loop.

        Raises:
            RuntimeError: one is not.
        """
        for accounts in self.accounts.values():
            accounts.affinity.check()

    async def check_accepted(self) -> None:
        """Check that Spotify does not refuse all apps, as far as it has answered lately. Spotify is not asked.

        The client secrets that it refuses are read again: a process that gets no calls, as it is not ready, would
        otherwise never have the other one.

        Raises:
            ConfigurationError: it does; the text says why.
        """
        await self.reread_secrets()
        reasons: list[AppRefusal | None] = [accounts.refusals.recent() for accounts in self.accounts.values()]
        if (reason := reasons[0]) is not None and None not in reasons:
            raise ConfigurationError(f"Spotify refuses the app {next(iter(self.accounts))}: {SERVES_NOBODY[reason]}")

    async def refresh(
        self,
        refresh_token: str,
        client_ids: Iterable[str],
        *,
        user_id: UUID,
        timeout: float,  # noqa: ASYNC109  the deadline is over all apps
        clock: Callable[[], float],
    ) -> Granted | NotGranted:
        """Ask Spotify for a new access token with one app after the other, until one is granted.

        No request begins in the second half of the time, whatever the app.

        Args:
            refresh_token: as stored.
            client_ids: of apps of this process.
            user_id: whose token.
            timeout: seconds in all.
            clock: returns seconds since the epoch.
        """
        begun = Stopwatch(clock)
        refused_by: list[str] = []
        error: SpotifyUnavailable | ConfigurationError | None = None
        for client_id in client_ids:
            requested = Stopwatch(clock)
            begin_within = timeout / 2 - begun.elapsed
            if begin_within <= 0:
                error = error or SpotifyUnavailable("no time was left to ask with every app", answered=False)
                break
            try:
                grant = await self.accounts[client_id].refresh(
                    refresh_token,
                    user_id=user_id,
                    timeout=timeout / 2 + begin_within,
                    begin_within=begin_within,
                )
            except ReauthorizationRequired:
                refused_by.append(client_id)
            except (SpotifyUnavailable, ConfigurationError) as failed:
                error = error or renewed(failed)
            else:
                return Granted(grant, client_id, requested)
        return NotGranted(tuple(refused_by), error)

    def error_without(self, client_id: str, connection: Connection) -> SpotconnError:
        """Return the error for a connection of an app that this process does not have."""
        if client_id in self.retired:
            return ReauthorizationRequired("other_app", connection.expires_at)
        return OtherApp(client_id, self.accounts)
