"""Grants received from Spotify and not saved yet."""

import asyncio
import logging
import random
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from spotconn.errors import DatabaseUnavailable, SpotconnError
from spotconn.models import Connection, RefreshTurn, TokenGrant
from spotconn.store import ConnectionStore

_log = logging.getLogger("spotconn")

INTERVAL = 0.5
"""Seconds between two rounds of saving, less a random half: shorter than LAPSED_PAUSE of the protocol."""


@dataclass(frozen=True)
class _UnsavedGrant:
    turn: RefreshTurn
    grant: TokenGrant
    connection: Connection


class UnsavedGrants:
    """Holds each grant until it is saved, so that only the death of this process can lose one.

    Args:
        store: saves them.
    """

    def __init__(self, store: ConnectionStore) -> None:
        self._store = store
        self._unsaved: dict[UUID, _UnsavedGrant] = {}
        self._saver: asyncio.Task[None] | None = None

    def add(self, turn: RefreshTurn, stored: Connection, grant: TokenGrant) -> None:
        """Add the grant for a turn at the refresh of `stored`."""
        self._unsaved[turn.user_id] = _UnsavedGrant(turn, grant, _refreshed(stored, grant))

    def get(self, user_id: UUID) -> Connection | None:
        """Return the connection as it will be once its grant is saved, or None if the user has no unsaved grant."""
        unsaved = self._unsaved.get(user_id)
        return None if unsaved is None else unsaved.connection

    def drop(self, user_id: UUID) -> None:
        """Drop the grant of a user who has disconnected."""
        self._unsaved.pop(user_id, None)

    def clear(self) -> None:
        """Drop all grants, in a process that must not save them."""
        self._unsaved.clear()

    async def save(self, user_id: UUID) -> Connection | None:
        """Save the grant of a user.

        Returns:
            The saved connection; None if there was no grant, or another write came first.

        Raises:
            SpotconnError: it could not be saved now; a task goes on trying.
        """
        try:
            return await self._save(user_id)
        except BaseException:  # also a cancellation
            self._start_saver()
            raise

    async def flush(self, *, seconds: float) -> None:
        """Save all grants. Log as critical those that cannot be saved within `seconds`, and drop them."""
        try:
            if self._saver is not None:
                self._saver.cancel()
                await asyncio.wait([self._saver])
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._save_all()
        finally:  # also after a cancellation
            for user_id in self._unsaved:
                _log.critical(
                    "the refreshed connection of user %s could not be saved before shutdown; if Spotify has replaced "
                    "its refresh token, the user must connect again",
                    user_id,
                )
            self._unsaved.clear()

    async def _save(self, user_id: UUID) -> Connection | None:
        unsaved = self._unsaved.get(user_id)
        if unsaved is None:
            return None
        saved = await self._store.finish_refresh(unsaved.turn, unsaved.grant)
        if self._unsaved.get(user_id) is unsaved:
            del self._unsaved[user_id]
        return saved

    def _start_saver(self) -> None:
        if self._saver is None or self._saver.done():
            _log.error("a refreshed connection cannot be saved now; it is served all the same, and saving goes on")
            self._saver = asyncio.create_task(self._save_all(), name="spotconn-saver")

    async def _save_all(self) -> None:
        while self._unsaved:
            await self._save_round()
            if self._unsaved:
                await asyncio.sleep(INTERVAL * random.uniform(0.5, 1))  # noqa: S311  no secret hangs on it

    async def _save_round(self) -> None:
        for user_id in list(self._unsaved):
            try:
                await self._save(user_id)
            except DatabaseUnavailable:
                return  # it is away for the others too
            except SpotconnError as error:
                _log.warning("a refreshed connection cannot be saved: %s", error)
            except Exception as error:  # noqa: BLE001  of a cipher of the caller's: nothing ends the saving but `flush`
                _log.warning("a refreshed connection cannot be saved: %s", type(error).__name__)


def _refreshed(stored: Connection, grant: TokenGrant) -> Connection:
    """Return what finish_refresh will make of the row."""
    return stored.model_copy(
        update={
            "access_token": grant.access_token,
            "refresh_token": grant.refresh_token or stored.refresh_token,
            "expires_at": grant.expires_at,
            "scope": stored.scope if grant.scope is None else grant.scope,
            "failure": None,
        }
    )
