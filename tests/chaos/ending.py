"""The end of a run: everything is healed and closed, and each user is refreshed once more by a new process."""

import asyncio
import time
from contextlib import suppress

import asyncpg

from chaos.faults import BROKEN, CLOSING, Faults, age
from chaos.history import Ending, digest
from chaos.plan import LEASE
from chaos.world import World
from spotconn import (
    ConnectionAdmin,
    ConnectionStore,
    NotConnected,
    SpotconnError,
    SpotifyAccounts,
    TokenManager,
    TryLater,
)

AWAY = 1.5
"""Seconds from which the database is away while the first process closes."""
SETTLES = 0.5
"""Seconds of healthy traffic before the processes are ended."""
GONE = 1.0
"""Seconds until the server has ended the sessions that were closed."""
SERVED = 30.0
"""Seconds within which each user must be served."""

_SESSIONS = "select application_name from pg_stat_activity where usename = 'app'"
_LEASES = "select user_id from spotconn.refresh_state where spotconn.runs(leased_at, lease_until, spotconn.now())"
# Spotify's own trouble is over: what is recorded of it would pause a user for up to five minutes.
_END_PAUSES = """
update spotconn.refresh_state set failure = null, failed_at = null, retry_at = null, paused_at = null
where failure = 'unavailable'
"""
_ROW = "select refresh_token from public.spotify_connections where user_id = $1"


async def end(world: World, faults: Faults) -> None:
    """Heal, close all processes, look for what is left, and refresh each user."""
    closing = asyncio.create_task(_close_without_database(world))
    await faults.end()
    await asyncio.sleep(min(AWAY, world.plan.seconds / 2))
    await faults.heal()
    await asyncio.sleep(SETTLES)
    await asyncio.gather(closing, *[process.leave() for process in world.processes[1:]])
    async with world.session("ending") as admin:
        await _check_left(world, admin)
        await admin.execute(_END_PAUSES)
        async with ConnectionAdmin.open(world.database.admin_dsn) as operator:
            await operator.recheck(since=await admin.fetchval("select now() - interval '1 hour'"))
        for user in world.users:
            await age(admin, user, -5.0)
        await _refresh_all(world, admin)


async def _close_without_database(world: World) -> None:
    """Close a process while Spotify answers its refreshes and the database is away."""
    with suppress(*BROKEN):
        async with world.session() as admin:
            for user in world.users:
                await age(admin, user, -5.0)
    world.spotify.break_down("late", CLOSING)
    await asyncio.sleep(CLOSING)
    world.proxy.refuses = True
    world.proxy.cut()
    await world.processes[0].leave()


async def _check_left(world: World, admin: asyncpg.Connection) -> None:
    """No session may be left, and no lease once those are over whose holder was killed or never heard of its turn."""
    deadline = time.time() + LEASE + GONE
    while True:
        leases = await admin.fetch(_LEASES)
        sessions = [row["application_name"] for row in await admin.fetch(_SESSIONS)]
        if not (leases or sessions) or time.time() > deadline:
            break
        await asyncio.sleep(0.05)
    world.history.problems += [f"a session is left: {name}" for name in sessions]
    world.history.problems += [f"a lease is left: {row['user_id']}" for row in leases]


async def _refresh_all(world: World, admin: asyncpg.Connection) -> None:
    url = f"{world.url}/owner/ending/0"
    async with (
        ConnectionStore.open(world.database.dsn, cipher=world.cipher, max_size=4) as store,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url) as accounts,
        TokenManager(store, accounts, expiry_margin=0, refresh_window=0) as tokens,
    ):
        await asyncio.gather(*[_refresh(world, tokens, number) for number in range(world.plan.users)])
    for ending in world.history.endings:
        user_id = world.users[ending.user]
        if (stored := await admin.fetchval(_ROW, user_id)) is not None:
            ending.refresh = digest(world.cipher.decrypt(stored, user_id=user_id, column="refresh_token"))


async def _refresh(world: World, tokens: TokenManager, user: int) -> None:
    ending = Ending(user, connected=True, refreshed=False)
    world.history.endings.append(ending)
    deadline = time.time() + SERVED
    while time.time() < deadline:
        try:
            token = await tokens.get_valid_token(world.users[user])
        except TryLater as error:
            ending.error = str(error)
            await asyncio.sleep(min(error.retry_after or 0.2, 2.0))
        except NotConnected:
            ending.connected = False
            return
        except SpotconnError as error:
            ending.error = str(error)
            return
        else:
            known = world.history.tokens.get(digest(token))
            ending.refreshed = world.spotify.accepts(token) and known is not None and known.user == user
            return
