"""The app of connections whose app is not known: recorded beside the running service.

A connection whose app is known stays as it is.
"""

from contextlib import suppress

from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn._database.row_owners import check_users
from spotconn._database.service_role import TIMEOUT, ServiceRole
from spotconn._database.statements import WITH_STATE
from spotconn.errors import DatabaseUnavailable, UnknownUser

_CONNECTED = "select user_id from public.spotify_connections where user_id >= $1 order by user_id limit $2"

# A new state refers to auth.users, which the deletion of a user locks before the connection. So states are added while
# no connection is locked. A user who is deleted meanwhile makes the statement fail.
_ADD_STATES = """
insert into spotconn.refresh_state (user_id, fingerprint)
select stored.user_id, sha256(convert_to(stored.refresh_token, 'UTF8'))
from public.spotify_connections as stored
where stored.user_id = any($1::text[]::uuid[])
    and not exists (select from spotconn.refresh_state as state where state.user_id = stored.user_id)
order by stored.user_id
on conflict (user_id) do nothing
"""
_LOCK_ROWS = """
select user_id from public.spotify_connections where user_id = any($1::text[]::uuid[])
order by user_id for no key update
"""
_OF_NO_APP = f"select stored.user_id {WITH_STATE} where stored.user_id = any($1::text[]::uuid[]) and client_id is null"
# Each in a statement of its own, after the connections are locked, so that it sees what their lock was waited for.
# As spotconn.enter_state: what speaks of another refresh token than the stored one is void.
_VOID_STATES = """
update spotconn.refresh_state as state set
    fingerprint = sha256(convert_to(stored.refresh_token, 'UTF8')),
    client_id = null, refused_by = '{}',
    family = gen_random_uuid(),
    lease_id = null, leased_at = null, lease_until = null, lapsed = false,
    failure = null, failed_at = null, paused_at = null, retry_at = null, failures = 0, refusals = 0,
    saved_at = null, granted_at = null, account_id = null
from public.spotify_connections as stored
where state.user_id = any($1::text[]::uuid[]) and stored.user_id = state.user_id
    and state.fingerprint <> sha256(convert_to(stored.refresh_token, 'UTF8'))
"""
# A refusal of a refresh token with other apps says nothing about its own.
_CLEAR_REFUSALS = """
update spotconn.refresh_state as state
set failure = null, failed_at = null, paused_at = null, retry_at = null, refusals = 0
from public.spotify_connections as stored
where state.user_id = any($1::text[]::uuid[]) and stored.user_id = state.user_id
    and state.client_id is null and state.failure <> 'unavailable' and $2::text <> all (state.refused_by)
"""
_ASSIGN_APP = """
update spotconn.refresh_state as state
set client_id = $2, refused_by = '{}'
from public.spotify_connections as stored
where state.user_id = any($1::text[]::uuid[]) and stored.user_id = state.user_id and state.client_id is null
returning state.user_id
"""


class AppAssignment:
    """Records the app of all connections whose app is not known.

    Args:
        database: of the admin.
        client_id: of the app.
    """

    def __init__(self, database: ServiceRole, client_id: str) -> None:
        self._database = database
        self._client_id = client_id

    async def run(self) -> int:
        """Return how many connections were assigned.

        Raises:
            RowSecurityError, DatabaseUnavailable, SchemaMismatch: as `ServiceRole.fetch`.
        """
        assigned = 0
        async for rows in self._database.batches(_CONNECTED):
            users = [str(row["user_id"]) for row in rows]
            await self._add_states(users)
            assigned += await self._assign(users)
        await self._database.confirm()
        return assigned

    async def _add_states(self, users: list[str]) -> None:
        try:
            async with self._database.transaction() as session:
                # A turn at a refresh waits half a second for these states.
                await map_errors(session.execute("set local lock_timeout = '200ms'", timeout=TIMEOUT))
                await map_errors(session.execute(_ADD_STATES, users, timeout=TIMEOUT))
        except (UnknownUser, DatabaseUnavailable):
            # A user is being deleted, or has been. Live refreshes of the others must not wait for that.
            for user in users:
                with suppress(UnknownUser):
                    await self._database.fetch(_ADD_STATES, [user])

    async def _assign(self, connected: list[str]) -> int:
        found = await self._database.fetch(_OF_NO_APP, connected)
        users = [str(row["user_id"]) for row in found]
        return await self._database.run(lambda session: self._write(session, users)) if users else 0

    async def _write(self, session: Session, users: list[str]) -> int:
        await map_errors(session.execute(_LOCK_ROWS, users, timeout=TIMEOUT))
        await map_errors(session.execute(_VOID_STATES, users, timeout=TIMEOUT))
        await map_errors(session.execute(_CLEAR_REFUSALS, users, self._client_id, timeout=TIMEOUT))
        assigned = await map_errors(session.fetch(_ASSIGN_APP, users, self._client_id, timeout=TIMEOUT))
        check_users(session, {str(row["user_id"]) for row in assigned} <= set(users))
        return len(assigned)
