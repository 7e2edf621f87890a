"""The refresh functions of sql/schema.sql over one row in memory, for tests that walk through orders.

`decide` is `spotconn.decide_turn`; `test_decisions.py` compares the two. Times are seconds since the epoch.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from spotconn.models import fingerprint

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
YEAR_2000 = 946_684_800.0
JITTER = 0.75
"""The random factor of a backoff, 0.5 to 1 in the database."""
FIRST_FAMILY = UUID(int=0)


@dataclass(frozen=True)
class Row:
    """A row of public.spotify_connections."""

    spotify_user_id: str
    access_token: str
    refresh_token: str
    expires_at: float
    connected_at: float | None


@dataclass
class State:
    """A row of spotconn.refresh_state. It counts while the row holds the refresh token of its fingerprint."""

    fingerprint: str
    client_id: str | None = None
    account_id: str | None = None
    refused_by: tuple[str, ...] = ()
    lease_id: UUID | None = None
    leased_at: float | None = None
    lease_until: float | None = None
    lapsed: bool = False
    failure: str | None = None
    failed_at: float | None = None
    paused_at: float | None = None
    retry_at: float | None = None
    failures: int = 0
    refusals: int = 0
    saved_at: float | None = None
    granted_at: float | None = None
    saves: int = 0
    family: UUID = FIRST_FAMILY


def seconds_left(ends: float, now: float) -> float:
    """Return the seconds until an access token ends; an end that no token can have counts as past."""
    return 0.0 if ends < YEAR_2000 or ends > now + DAY else ends - now


def runs(since: float | None, until: float | None, now: float) -> bool:
    """Return whether a time still runs; one with more left than its length is void."""
    return since is not None and until is not None and since - 1 <= now < until


def counts(state: State, client_ids: Sequence[str] | None) -> bool:
    """Return whether the failure of a refresh token says something to a process that has these apps."""
    if state.failure == "unavailable" or state.client_id is not None or client_ids is None:
        return True
    return all(client_id in state.refused_by for client_id in client_ids)


def apps_to_try(state: State | None, client_ids: Sequence[str] | None) -> list[str] | None:
    """Return the apps with which a turn is to be used, in order."""
    if state is not None and state.client_id is not None:
        return [state.client_id]
    if client_ids is None:
        return None
    return [one for one in client_ids if state is None or one not in state.refused_by] or list(client_ids)


def decide(
    row: Row, state: State | None, seen: str, client_ids: Sequence[str] | None, now: float
) -> tuple[str, float | None]:
    """Return what a caller may do who found the access token `seen` wanting, and the seconds until that changes."""
    state = state or State("")
    held = fingerprint(row.access_token) == seen
    ended = seconds_left(row.expires_at, now) <= 0
    leased = runs(state.leased_at, state.lease_until, now)
    counting = counts(state, client_ids)
    paused = counting and runs(state.paused_at, state.retry_at, now)
    refused = counting and state.failure not in {None, "unavailable"}
    young_until = None if state.granted_at is None else state.granted_at + MINUTE
    if not held and not ended:
        return "superseded", None
    if refused and (state.retry_at is None or paused or leased):
        return "refused", None
    if held and not ended and runs(state.granted_at, young_until, now):
        return "just_saved", _until(young_until, now)
    if not leased and state.client_id is not None and client_ids is not None and state.client_id not in client_ids:
        return "other_app", None
    if paused:
        return "paused", _until(state.retry_at, now)
    return ("busy", _until(state.lease_until, now)) if leased else ("granted", None)


def _until(moment: float | None, now: float) -> float | None:
    return None if moment is None else moment - now


class MemoryDatabase:
    """One user's row and state.

    Args:
        clock: of the database.

    Attributes:
        row: the connection, if there is one.
        state: what is known of a refresh token of the user.
        history: row and state after each commit, the first state first.
    """

    def __init__(self, clock: Callable[[], float], row: Row | None) -> None:
        self._clock = clock
        self._ids = itertools.count(1)
        self.row = row
        self.state: State | None = None
        self.history: list[tuple[Row | None, State | None]] = []
        self.commit()

    def commit(self) -> None:
        """Keep what stands now, for a failover that goes back to it."""
        now = (self.row, copy.copy(self.state))
        if not self.history or self.history[-1] != now:
            self.history.append(now)

    def go_back(self, to: int) -> None:
        """Lose what was committed since."""
        row, state = self.history[max(to, -len(self.history))]
        self.row, self.state = row, copy.copy(state)

    # The functions that the statements of the store call.

    def get(self, user_id: UUID) -> dict[str, Any] | None:
        return self._shown(user_id)

    def get_many(self, user_ids: list[UUID]) -> list[dict[str, Any]]:
        return [shown for user_id in user_ids if (shown := self._shown(user_id))]

    def delete(self, user_id: UUID) -> dict[str, Any]:
        deleted = self.row is not None
        self.row = self.state = None
        self.commit()
        return {"user_id": user_id, "deleted": deleted}

    def save(
        self,
        user_id: UUID,
        account: str,
        access: str,
        refresh: str,
        expires_at: datetime,
        *others: Any,  # scope, display_name, email, connected_at, expires_in, age, client_id, account_id, same_account
    ) -> dict[str, Any] | None:
        *_, connected_at, expires_in, age, client_id, account_id, _ = others
        now = self._clock()
        previous = self.row and self.row.spotify_user_id
        connected = now if connected_at is None else min(now, connected_at.timestamp())
        self.row = Row(account, access, refresh, self._token_end(expires_at, expires_in, age) or 0.0, connected)
        state = self._enter(fingerprint(refresh))
        state.failure = state.failed_at = state.paused_at = state.retry_at = None
        state.failures = state.refusals = 0
        state.client_id, state.refused_by = client_id or state.client_id, ()
        state.account_id = account_id
        state.saved_at, state.granted_at = now, None if expires_in is None else now
        state.saves, state.family = state.saves + 1, self._new_id()
        self.commit()
        shown = self._shown(user_id)
        return shown and shown | {"previous_spotify_user_id": previous}

    def begin_refresh(
        self, user_id: UUID, seen: bytes, lease: timedelta, client_ids: list[str] | None, lease_id: UUID
    ) -> dict[str, Any]:
        answer: dict[str, Any] = dict.fromkeys(("user_id", "lease_id", "lease_until", "retry_after", "client_ids"))
        if self.row is None:
            return {**answer, "outcome": "gone"}
        now = self._clock()
        answer |= self._shown(user_id) or {}
        known = self._known()
        if known is not None and known.lease_id == lease_id:
            known = replace(known, leased_at=None, lease_until=None)
        answer["outcome"], answer["retry_after"] = decide(self.row, known, seen.hex(), client_ids, now)
        if answer["outcome"] == "granted":
            answer["client_ids"] = apps_to_try(self._known(), client_ids)
            state = self._enter(fingerprint(self.row.refresh_token))
            state.lapsed |= state.lease_id not in {None, lease_id}
            state.lease_id, state.leased_at = lease_id, now
            state.lease_until = now + lease.total_seconds()
            answer["lease_id"], answer["lease_until"] = state.lease_id, _moment(state.lease_until)
            answer["saves"], answer["family"] = state.saves, state.family
            self.commit()
        return answer

    def finish_refresh(
        self,
        user_id: UUID,
        replaced: bytes,
        held: bytes,
        access: str,
        refresh: str | None,
        expires_at: datetime | None,
        expires_in: float | None,
        age: float,
        _scope: str | None,
        lease_id: UUID | None,
        lease_until: datetime | None,
        _rejected: bool,  # noqa: FBT001  as in SQL
        saves: int | None,
        family: UUID | None,
        client_id: str | None,
    ) -> dict[str, Any] | None:
        standing, recovered, now = self.row, None, self._clock()
        ends = self._token_end(expires_at, expires_in, age) or 0.0
        if lease_until is not None and expires_in is not None:
            ends = min(ends, lease_until.timestamp() + expires_in)
        saved = standing is not None and fingerprint(standing.refresh_token) == replaced.hex()
        if saved and standing is not None:
            state = self._enter(replaced.hex())
            recovered = state.failure
            taken = fingerprint(standing.access_token) == held.hex() or ends - now > seconds_left(
                standing.expires_at, now
            )
            self.row = replace(standing, refresh_token=refresh or standing.refresh_token)
            if taken:
                self.row = replace(self.row, access_token=access, expires_at=ends)
            if refresh is not None or state.lease_id == lease_id:
                state.lease_id = state.leased_at = state.lease_until = None
            state.client_id, state.refused_by = client_id or state.client_id, ()
            state.fingerprint, state.family = fingerprint(self.row.refresh_token), family or state.family
            self._saved(state, saves, taken=taken)
            self.commit()
        shown = self._shown(user_id)
        return None if shown is None else {"saved": saved, "recovered": recovered, **shown}

    def fail_refresh(
        self,
        user_id: UUID,
        sent: bytes,
        lease_id: UUID,
        reason: str | None,
        retry_after: float | None,
        refused_by: list[str],
    ) -> dict[str, Any] | None:
        state, row, now = self._known(), self.row, self._clock()
        if row is None or state is None or fingerprint(row.refresh_token) != sent.hex() or state.lease_id != lease_id:
            return None
        first_by_these = False
        if state.client_id is not None and refused_by and state.client_id not in refused_by:
            reason = None  # its app has become known meanwhile
        elif state.client_id is None:
            first_by_these = not set(refused_by) <= set(state.refused_by)
            state.refusals = 0 if first_by_these else state.refusals
            due = state.failure not in {None, "unavailable"} and state.retry_at is not None and state.retry_at <= now
            kept = () if reason == "refused" and due else state.refused_by
            state.refused_by = tuple(sorted({*kept, *refused_by}))
        if reason == "refused":
            self._refuse(state, row, now)
            state.lapsed &= first_by_these
        elif reason == "unavailable":
            state.failed_at = state.failed_at or now
            state.failure = state.failure or "unavailable"
            backoff = min(300, 2 ** min(state.failures, 9)) * JITTER
            state.retry_at = now + max(backoff, min(DAY, retry_after or 0.0))
            state.failures += 1
        state.lease_id = state.leased_at = state.lease_until = None
        state.paused_at = state.paused_at if reason is None else now
        self.commit()
        return {"user_id": user_id, **_failure(state)}

    def rekey(self, encrypt: Callable[[str], str]) -> None:
        """Store other texts of the same tokens, and let the state go with them."""
        if self.row is None:
            return
        known = self._known()
        self.row = replace(
            self.row,
            access_token=encrypt(self.row.access_token),
            refresh_token=encrypt(self.row.refresh_token),
        )
        if known is not None:
            known.fingerprint = fingerprint(self.row.refresh_token)
        self.commit()

    def _refuse(self, state: State, row: Row, now: float) -> None:
        dated = state.saved_at is not None and row.connected_at is not None and row.connected_at <= now
        if state.failure in {None, "unavailable"}:
            state.failed_at = now
        state.failure = "revoked" if dated else "invalid"
        if dated and (row.connected_at or 0.0) + 182 * DAY <= now:
            state.failure = "expired"
        if state.failure == "expired" or (state.refusals > 1 and not state.lapsed):
            state.retry_at = None
        elif state.lapsed:
            state.retry_at = now + MINUTE
        else:
            state.retry_at = now + (DAY if state.refusals else HOUR)
        state.refusals += not state.lapsed

    def _saved(self, state: State, saves: int | None, *, taken: bool) -> None:
        state.lapsed = False
        state.failure = state.failed_at = state.paused_at = state.retry_at = None
        state.failures = state.refusals = 0
        state.saved_at = self._clock()
        if taken:
            state.granted_at = state.saved_at if saves is None else None
        state.saves = max(state.saves + 1, saves or 0)

    def _enter(self, entered: str) -> State:
        """Let the state speak of a refresh token: what was known of another one is void, but for `saves`."""
        if self.state is None or self.state.fingerprint != entered:
            self.state = State(entered, saves=self.state.saves if self.state else 0, family=self._new_id())
        return self.state

    def _new_id(self) -> UUID:
        return UUID(int=next(self._ids))

    def _known(self) -> State | None:
        """Return the state if it speaks of the stored refresh token."""
        if self.row is None or self.state is None or self.state.fingerprint != fingerprint(self.row.refresh_token):
            return None
        return self.state

    def _token_end(self, expires_at: datetime | None, expires_in: float | None, age: float) -> float | None:
        if expires_in is not None:
            return self._clock() + expires_in - age
        return None if expires_at is None else expires_at.timestamp()

    def _shown(self, user_id: UUID) -> dict[str, Any] | None:
        """Return the row as spotconn.connections does."""
        row, known = self.row, self._known()
        if row is None:
            return None
        return {
            "id": user_id,
            "user_id": user_id,
            "spotify_user_id": row.spotify_user_id,
            "access_token": row.access_token,
            "refresh_token": row.refresh_token,
            "expires_at": _moment(row.expires_at),
            "connected_at": _moment(row.connected_at),
            "display_name": None,
            "email": None,
            "scope": None,
            "client_id": None if known is None else known.client_id,
            "refused_by": None if known is None else list(known.refused_by),
            "account_id": None if known is None else known.account_id,
            "saves": None if known is None else known.saves,
            "family": None if known is None else known.family,
            "remaining": seconds_left(row.expires_at, self._clock()),
            "previous_spotify_user_id": None,
            **_failure(known),
        }


def _failure(state: State | None) -> dict[str, Any]:
    if state is None:
        return {"failure": None, "failed_at": None, "retry_at": None}
    return {"failure": state.failure, "failed_at": _moment(state.failed_at), "retry_at": _moment(state.retry_at)}


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
