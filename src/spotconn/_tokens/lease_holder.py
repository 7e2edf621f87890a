"""What the holder of a lease does: ask Spotify, then save the grant or record the failure."""

import logging
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from uuid import UUID

from spotconn import events
from spotconn._affinity import Affinity
from spotconn._observer import NOBODY, Observer
from spotconn._spotify.retry import READING_TIME
from spotconn._stopwatch import Stopwatch, loop_time
from spotconn._tokens.apps import Apps, Granted
from spotconn._tokens.arguments import Times
from spotconn._tokens.local_backoff import LocalBackoffs
from spotconn._tokens.refusal_wave import RefusalWave
from spotconn._tokens.request_budget import RequestBudget
from spotconn._tokens.server_watch import ServerWatch
from spotconn._tokens.stored_token import StoredToken, reauthorization
from spotconn._tokens.unsaved_grants import UnsavedGrant, UnsavedGrants
from spotconn.errors import ConfigurationError, DatabaseUnavailable, SpotconnError, SpotifyUnavailable
from spotconn.models import Connection, TokenGrant, digest, fingerprint, is_token
from spotconn.store import ConnectionStore
from spotconn.turns import RefreshFailure, RefreshTurn

_log = logging.getLogger("spotconn")

_MAY_BE_LOST = (
    "Spotify has refused the stored refresh token, but the database is another server since less than a minute: it may "
    "have lost the next one, which another process saves again"
)


class LeaseHolder:
    """Refreshes connections whose lease this process holds.

    Args:
        store: holds the connections.
        apps: refresh them.
        unsaved: takes each grant until it is saved.
        watch: knows whether the server has changed.
        backoffs: of this host.
        emitter: emits what happens to connections.
        affinity: of the manager: once that is closed, no new refresh begins.
        times: of the manager.
        clock: gives seconds since the epoch.

    Attributes:
        observer: counts refusals.
    """

    def __init__(  # noqa: PLR0917  the parts that it puts together
        self,
        store: ConnectionStore,
        apps: Apps,
        unsaved: UnsavedGrants,
        watch: ServerWatch,
        backoffs: LocalBackoffs,
        emitter: events.Events,
        affinity: Affinity,
        times: Times,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._apps = apps
        self._unsaved = unsaved
        self._watch = watch
        self._backoffs = backoffs
        self._events = emitter
        self._affinity = affinity
        self._times = times
        self._clock = clock
        self._wave = RefusalWave()
        self._budget = RequestBudget()
        self._rejected = Counter[str]()
        self._requests: dict[RefreshTurn, bool] = {}
        self.observer: Observer = NOBODY

    @contextmanager
    def rejecting(self, access_token: str) -> Generator[None]:
        """Context manager: a caller waits for another token than one that the Web API has refused."""
        self._rejected[access_token] += 1
        try:
            yield
        finally:
            self._rejected[access_token] -= 1
            if not self._rejected[access_token]:
                del self._rejected[access_token]

    def doubt(self, user_id: UUID) -> None:
        """Handle that a user has connected or disconnected: a grant under way is not served before it is saved."""
        for turn in self._requests:
            if turn.user_id == user_id:
                self._requests[turn] = True

    async def refresh(self, turn: RefreshTurn, stored: Connection, leased: Stopwatch) -> StoredToken | None:
        """Return the token that Spotify grants, saved or not. None means: look at the row again.

        Spotify gets the full timeout, however long this process waited for its turn: an answer that comes too late for
        the callers may hold the only refresh token that is still good. What is left of the lease must cover it.

        Args:
            turn: a granted one.
            stored: the connection of the turn.
            leased: runs since before the database was asked: the lease has begun no earlier.

        Raises:
            ReauthorizationRequired, SpotifyUnavailable, ConfigurationError: of Spotify.
            SpotconnError: a refusal could not be recorded.
            Exception: what else was raised in place of an answer; the lease is ended all the same.
        """
        late = self._times.lease - leased.elapsed < self._times.timeout + READING_TIME
        if late or self._affinity.closed or self._unsaved.holds(turn.user_id):
            await self._store.fail_refresh(turn, RefreshFailure())
            return None
        if error := self._too_soon(turn.user_id, stored):
            await self._store.fail_refresh(turn, RefreshFailure())
            raise error
        self._requests[turn] = False
        try:
            return await self._ask(turn, stored)
        finally:
            del self._requests[turn]

    def _too_soon(self, user_id: UUID, stored: Connection) -> SpotconnError | None:
        """Return why Spotify is not asked now, whatever access token another writer has put into the row."""
        now = loop_time()
        held = self._backoffs.error(user_id, fingerprint(stored.texts.refresh_token), now)
        return held or self._budget.spend(user_id, now)

    async def _ask(self, turn: RefreshTurn, stored: Connection) -> StoredToken | None:
        began = Stopwatch(self._clock)
        try:
            answer = await self._apps.refresh(
                stored.refresh_token,
                turn.client_ids,
                user_id=turn.user_id,
                timeout=self._times.timeout,
                clock=self._clock,
            )
        except Exception as error:
            # A cancelled request is not among these: it may have reached Spotify, and its lease runs out by itself.
            await self._failed(turn, stored, (), _unexpected(error))
            raise
        if isinstance(answer, Granted):
            self._backoffs.end(turn.user_id)
            self._wave.granted(turn.user_id, loop_time())
            return await self._save(self._unsaved_grant(turn, stored, answer), duration=began.elapsed)
        if answer.error is None and not await self._watch.changed_lately():
            await self._refused(turn, stored, answer.refused_by)
            return None
        # The database may have lost the token that came after a refused one: the process that has it saves it again.
        reason = answer.error or SpotifyUnavailable(_MAY_BE_LOST, answered=False)
        await self._failed(turn, stored, answer.refused_by if answer.error else (), reason)
        raise reason

    def _unsaved_grant(self, turn: RefreshTurn, stored: Connection, answer: Granted) -> UnsavedGrant:
        return UnsavedGrant(
            turn,
            answer.grant,
            answer.client_id,
            answer.requested,
            _granted_token(stored, answer.grant, self._clock() - answer.requested.elapsed),
            rejected=stored.access_token in self._rejected,
            doubtful=self._requests[turn],
        )

    async def _save(self, unsaved: UnsavedGrant, *, duration: float) -> StoredToken | None:
        """Return the token of a grant, saved or not; None if another write came first."""
        user_id = unsaved.turn.user_id
        self._unsaved.add(unsaved)
        read_at, expires_at = self._clock(), unsaved.grant.expires_at
        try:
            saved = await self._unsaved.save(user_id)
        except Exception:  # noqa: BLE001  also of a cipher of the caller's: the grant is good
            token = self._unsaved.get(user_id)  # not that of this grant where a later one has come first
            if token is None:
                return None
        else:
            if saved is None:
                return None
            token, expires_at = StoredToken.of(saved, read_at), saved.expires_at
        self._events.emit(
            events.Refreshed(user_id=user_id, client_id=unsaved.client_id, expires_at=expires_at, duration=duration)
        )
        return token

    async def _refused(self, turn: RefreshTurn, stored: Connection, refused_by: tuple[str, ...]) -> None:
        """Record that Spotify has refused the refresh token, unless another one is stored by now: then look again."""
        recorded = await self._store.fail_refresh(turn, RefreshFailure(reason="refused", refused_by=refused_by))
        error = reauthorization(recorded)
        if recorded is None or error is None:
            return
        self.observer.refused(refused_by[0] if len(refused_by) == 1 else None, error.reason)
        if error.reason != "expired" and is_token(stored.refresh_token):  # any other was not sent to Spotify
            self._log_wave(turn)
        if not stored.is_refused_to(self._apps.accounts):  # it is news
            self._events.emit(
                events.ReauthorizationRequired(user_id=turn.user_id, client_id=stored.client_id, reason=error.reason)
            )
        raise error

    def _log_wave(self, turn: RefreshTurn) -> None:
        if self._wave.refused(turn.user_id, loop_time()):
            _log.critical(
                "Spotify has refused the refresh tokens of many users within minutes, before their time: an outage of "
                "Spotify, or a wrong SPOTIFY_CLIENT_ID? Each is tried again, after an hour and after a day"
            )

    async def _failed(
        self,
        turn: RefreshTurn,
        stored: Connection,
        refused_by: tuple[str, ...],
        error: SpotifyUnavailable | ConfigurationError,
    ) -> None:
        """End the lease and back off: every process after Spotify's answer, only this one after a fault of its own."""
        # What Spotify answered of this connection counts for every process; a fault of this host's network does not,
        # nor do the app's credentials, which another process may have right, nor the Retry-After of an app that may not
        # be that of the connection.
        if isinstance(error, SpotifyUnavailable) and error.answered and stored.client_id is not None:
            failure = RefreshFailure(reason="unavailable", retry_after=error.retry_after)
        else:
            failure = RefreshFailure(refused_by=refused_by)
            sent = fingerprint(stored.texts.refresh_token)
            self._backoffs.begin(turn.user_id, stored.fingerprint, error, loop_time(), refresh_token=sent)
        try:
            await self._store.fail_refresh(turn, failure)
        except SpotconnError as unrecorded:
            # The lease ends by itself; the error of the caller counts, and that of all else while the database is away.
            level = logging.DEBUG if isinstance(unrecorded, DatabaseUnavailable) else logging.WARNING
            _log.log(level, "a failed refresh could not be recorded: %s", unrecorded)
        self._events.emit(
            events.RefreshFailed(
                user_id=turn.user_id,
                client_id=stored.client_id,
                error=type(error).__name__,
                message=str(error),
                retry_after=error.retry_after if isinstance(error, SpotifyUnavailable) else None,
            )
        )


def _unexpected(error: Exception) -> SpotifyUnavailable:
    """Return what to record of an error that is none of Spotify's, such as that of accounts closed meanwhile."""
    return SpotifyUnavailable(f"the request to Spotify ended with {type(error).__name__}", answered=False)


def _granted_token(stored: Connection, grant: TokenGrant, requested_at: float) -> StoredToken:
    """Return the token of a grant that is not saved yet."""
    scope = stored.scope if grant.scope is None else grant.scope
    ends = requested_at + (grant.expires_in or 0.0)
    return StoredToken(grant.access_token, digest(grant.access_token), ends, scope)
