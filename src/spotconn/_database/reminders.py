"""The record of users who were asked to connect again: when, and about which authorization."""

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn._database.row_owners import check_users
from spotconn._database.service_role import BATCH, TIMEOUT, ServiceRole
from spotconn.errors import UnknownUser

# A deletion of several users may wait for what this has locked, and hold what this waits for. This begins anew before
# Postgres looks for deadlocks, so that deletion is not the victim.
_LOCK_TIMEOUT = "set local lock_timeout = '500ms'"
# Of two who mark a user at once the second waits for the first, and looks at what that has recorded.
_MARK = """
insert into spotconn.reminder as reminder (user_id, connected_at, asked_at)
select stored.user_id, stored.connected_at, spotconn.now()
from public.spotify_connections as stored
where stored.user_id = any($1::text[]::uuid[]) and coalesce(stored.connected_at < $2, true)
order by stored.user_id
on conflict (user_id) do update set connected_at = excluded.connected_at, asked_at = excluded.asked_at
where coalesce(reminder.asked_at < $2, true)
    or date_trunc('second', reminder.connected_at) is distinct from date_trunc('second', excluded.connected_at)
returning user_id
"""


class Reminders:
    """Records that users were asked.

    Args:
        database: of the admin.
        not_asked_since: leave out users who were asked, or have connected, since then; None for no such user.
    """

    def __init__(self, database: ServiceRole, not_asked_since: datetime | None) -> None:
        self._database = database
        self._since = not_asked_since

    async def mark(self, users: list[UUID]) -> int:
        """Return how many users were recorded.

        Raises:
            RowSecurityError, DatabaseUnavailable, SchemaMismatch: as `ServiceRole.fetch`.
        """
        return sum([await self._mark([str(user) for user in batch]) for batch in _batches(sorted(set(users)))])

    async def _mark(self, users: list[str]) -> int:
        async def write(session: Session) -> int:
            await map_errors(session.execute(_LOCK_TIMEOUT, timeout=TIMEOUT))
            marked = await map_errors(session.fetch(_MARK, users, self._since, timeout=TIMEOUT))
            check_users(session, {str(row["user_id"]) for row in marked} <= set(users))
            return len(marked)

        try:
            return await self._database.run(write)
        except UnknownUser:  # one of them has been deleted meanwhile, with the connection
            if len(users) == 1:
                return 0
        half = len(users) // 2
        return await self._mark(users[:half]) + await self._mark(users[half:])


def _batches(users: list[UUID]) -> Iterator[list[UUID]]:
    for start in range(0, len(users), BATCH):
        yield users[start : start + BATCH]
