"""Deletion of connections that give no token any more, beside the running service.

What is deleted is decided anew on the rows once they are locked, so what a reconnect, a refresh, a recheck or another
writer has saved meanwhile stays. A row that another transaction holds is not waited for: the next run finds it.
"""

# ruff: noqa: S608  the statements are put together from constants

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta

import asyncpg

from spotconn._arguments import CENTURY, several
from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn._database.row_owners import check_users
from spotconn._database.service_role import TIMEOUT, ServiceRole
from spotconn._database.statements import WITH_STATE
from spotconn.overview import PruneProgress

_STAY = ("not_final", "too_recent")
"""The reasons of connections that are counted and never deleted; written as in SQL."""

# A refusal without retry_at is final, but where the app of the refresh token is not known: another may be its own, as
# long as the six months are not over. Each sign of life counts; of the dates that others write, those that can be true.
_REASON = f"""
select stored.user_id, case when aged.enough then judged.reason else 'too_recent' end as reason
{WITH_STATE}
cross join lateral (values (case
    when state.failure <> 'unavailable' and state.retry_at is null
        and (state.failure = 'expired' or state.client_id is not null) then state.failure
    when state.client_id = any({{retired}}::text[]) then 'retired_app'
    when state.failure <> 'unavailable' then 'not_final'
end)) as judged (reason)
cross join lateral (values (
    greatest(
        state.failed_at, state.paused_at, state.leased_at, state.lease_until, state.saved_at,
        case when stored.connected_at::timestamptz <= spotconn.now() then stored.connected_at::timestamptz end,
        case when stored.expires_at::timestamptz <= spotconn.now() + interval '24 hours'
            then stored.expires_at::timestamptz end
    ) <= spotconn.now() - make_interval(secs => {{seconds}})
)) as aged (enough)
where {{users}} and judged.reason is not null and (aged.enough or not aged.enough and judged.reason <> 'not_final')
"""
_FOUND = (
    _REASON.format(users="stored.user_id >= $1", seconds="$3", retired="$4") + "order by stored.user_id\nlimit $2\n"
)
# As every other writer: the connection first, then what is known of its refresh token.
_LOCK_FREE_ROWS = """
select stored.user_id from public.spotify_connections as stored
join spotconn.refresh_state as state on state.user_id = stored.user_id
where stored.user_id = any($1::text[]::uuid[]) order by stored.user_id
for update of stored, state skip locked
"""
# In a statement of its own, after the rows are locked, so that it sees what was written until then.
_DELETE = f"""
with dead as ({_REASON.format(users="stored.user_id = any($1::text[]::uuid[])", seconds="$2", retired="$3")}),
gone as (
    delete from public.spotify_connections as stored using dead
    where stored.user_id = dead.user_id and dead.reason not in {_STAY}
    returning stored.user_id, dead.reason
), forgotten as (
    delete from spotconn.refresh_state as state using gone where state.user_id = gone.user_id
), no_reminder as (
    delete from spotconn.reminder as reminder using gone where reminder.user_id = gone.user_id
)
select user_id, reason from gone
"""


class Prune:
    """Deletes, or counts, the connections that Spotify has refused for good, and those of retired apps.

    Args:
        database: of the admin.
        dead_for: since the last sign of life of a connection.
        retired_client_ids: of apps that are given up for good.
        write: whether to delete them.

    Raises:
        ValueError: `dead_for` is negative or longer than a century, or `retired_client_ids` is one string.
    """

    def __init__(
        self, database: ServiceRole, dead_for: timedelta, retired_client_ids: Iterable[str], *, write: bool
    ) -> None:
        if not timedelta() <= dead_for <= CENTURY:
            raise ValueError("dead_for: expected no negative time, and at most a century")
        self._database = database
        self._conditions = dead_for.total_seconds(), list(several(retired_client_ids, name="retired_client_ids"))
        self._write = write
        self._counts = Counter[str]()

    async def run(self, report: Callable[[PruneProgress], object] | None) -> PruneProgress:
        """Go through all connections in batches, and call `report` after each.

        Raises:
            RowSecurityError, DatabaseUnavailable, SchemaMismatch: as `ServiceRole.fetch`.
        """
        async for rows in self._database.batches(_FOUND, *self._conditions):
            self._counts.update(await self._reasons(rows))
            if report is not None:
                report(self._progress)
        if self._write:
            await self._database.confirm()
        return self._progress

    @property
    def _progress(self) -> PruneProgress:
        return PruneProgress(**self._counts)

    async def _reasons(self, rows: list[asyncpg.Record]) -> list[str]:
        """Return the reason of each connection that is counted, after deleting those that go."""
        if not self._write:
            return [row["reason"] for row in rows]
        stay = [row["reason"] for row in rows if row["reason"] in _STAY]
        users = [str(row["user_id"]) for row in rows if row["reason"] not in _STAY]
        return stay + await self._database.run(lambda session: self._delete(session, users))

    async def _delete(self, session: Session, users: list[str]) -> list[str]:
        free = await map_errors(session.fetch(_LOCK_FREE_ROWS, users, timeout=TIMEOUT))
        locked = [str(row["user_id"]) for row in free]
        gone = await map_errors(session.fetch(_DELETE, locked, *self._conditions, timeout=TIMEOUT))
        check_users(session, {str(row["user_id"]) for row in gone} <= set(users))
        return [row["reason"] for row in gone]
