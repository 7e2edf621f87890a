"""Grants that Spotify has given and the database does not have yet."""

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

PAUSE = 0.5
"""Seconds between two rounds of saving, less a random half: shorter than what the protocol gives a late holder."""


@dataclass(frozen=True)
class _Kept:
    turn: RefreshTurn
    grant: TokenGrant
    connection: Connection


class KeptGrants:
    """Keeps each grant from Spotify's answer until it is saved, so that no fault but this process's death loses it.

    Args:
        store: where they belong.
    """

    def __init__(self, store: ConnectionStore) -> None:
        self._store = store
        self._kept: dict[UUID, _Kept] = {}
        self._saver: asyncio.Task[None] | None = None

    def keep(self, turn: RefreshTurn, stored: Connection, grant: TokenGrant) -> None:
        """Keep the grant for a turn at the refresh of `stored`."""
        self._kept[turn.user_id] = _Kept(turn, grant, _refreshed(stored, grant))

    def get(self, user_id: UUID) -> Connection | None:
        """The connection as it will be once its grant is saved; None where nothing is kept."""
        kept = self._kept.get(user_id)
        return None if kept is None else kept.connection

    def drop(self, user_id: UUID) -> None:
        """Forget what is kept of a user who has disconnected."""
        self._kept.pop(user_id, None)

    def clear(self) -> None:
        """Forget everything, in a process that is not to save it."""
        self._kept.clear()

    async def save(self, user_id: UUID) -> Connection | None:
        """Save what is kept of a user.

        Returns:
            The saved connection; None where nothing was kept, or another's write came first.

        Raises:
            SpotconnError: not now; it stays kept, and a task tries again until it is saved.
        """
        try:
            return await self._save(user_id)
        except BaseException:  # also a cancellation
            self._keep_trying()
            raise

    async def flush(self, *, seconds: float) -> None:
        """Save what is still kept; what cannot be saved within that time is lost, and that is logged as critical."""
        try:
            if self._saver is not None:
                self._saver.cancel()
                await asyncio.wait([self._saver])
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._save_all()
        finally:  # also after a cancellation
            for user_id in self._kept:
                _log.critical(
                    "the refreshed connection of user %s could not be saved before shutdown; if Spotify has replaced "
                    "its refresh token, the user must connect again",
                    user_id,
                )
            self._kept.clear()

    async def _save(self, user_id: UUID) -> Connection | None:
        kept = self._kept.get(user_id)
        if kept is None:
            return None
        saved = await self._store.finish_refresh(kept.turn, kept.grant)
        if self._kept.get(user_id) is kept:
            del self._kept[user_id]
        return saved

    def _keep_trying(self) -> None:
        if self._saver is None or self._saver.done():
            _log.error("a refreshed connection cannot be saved now; it is kept and served, and saving goes on")
            self._saver = asyncio.create_task(self._save_all(), name="spotconn-saver")

    async def _save_all(self) -> None:
        while self._kept:
            await self._save_round()
            if self._kept:
                await asyncio.sleep(PAUSE * random.uniform(0.5, 1))  # noqa: S311  no secret hangs on it

    async def _save_round(self) -> None:
        for user_id in list(self._kept):
            try:
                await self._save(user_id)
            except DatabaseUnavailable:
                return  # it is away for the others too
            except SpotconnError as error:
                _log.warning("a refreshed connection cannot be saved: %s", error)


def _refreshed(stored: Connection, grant: TokenGrant) -> Connection:
    """What finish_refresh will make of the row."""
    return stored.model_copy(
        update={
            "access_token": grant.access_token,
            "refresh_token": grant.refresh_token or stored.refresh_token,
            "expires_at": grant.expires_at,
            "scope": stored.scope if grant.scope is None else grant.scope,
            "failure": None,
        }
    )
