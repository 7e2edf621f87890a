"""What 20 users wait for their tokens while one tenant does what a signed-in user can do to the own row."""

import asyncio
import statistics
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg

from benchmarks import ROOT
from benchmarks.crowd import Crowd, gathered
from benchmarks.place import connected
from benchmarks.rounds import Figure, Round, Rounds, interleaved
from benchmarks.sizes import Size
from benchmarks.strict_spotify import ODD
from spotconn import ConnectFlow, ConnectionStore, SpotconnError, SpotifyAccounts, TokenManager
from spotconn.testing import EmbeddedPostgres
from support.tenant import Tenant, signed_in

USERS = 20
INTERVAL = 0.02
"""Seconds between two calls for one user, which come whether or not those before have been answered."""
REFUSED = 10.0
"""Seconds that a call counts which ends without a token."""
PAUSE = 0.01
"""Seconds between two requests of the tenant."""
CACHED = 30.0
"""Seconds for which a token is cached in the one service; in the other none is."""
DISCONNECTS = 10
REDIRECT_URI = "http://127.0.0.1:8000/callback"

_RESTORE = """
insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at)
values ($1, 'tenant', 'a', 'r', now() + interval '1 hour')
on conflict (user_id) do update set display_name = null, access_token = 'a', refresh_token = 'r',
    expires_at = excluded.expires_at
"""


@dataclass(frozen=True)
class Service:
    """A service over the library, and the tenant among its users.

    Attributes:
        tokens: of the service.
        flow: of the service.
        tenant: sends requests to the API of the project.
        size: how much is measured.
    """

    tokens: TokenManager
    flow: ConnectFlow
    tenant: Tenant
    size: Size

    async def ask(self) -> None:
        """Ask the service for the tenant's own token."""
        with suppress(SpotconnError):
            await self.tokens.get_valid_token(self.tenant.user_id)


Attack = Callable[[Service, asyncio.Event], Coroutine[None, None, None]]
"""Goes on until the event is set. It is not cancelled: a BEGIN cut short would leave its transaction open."""


async def nothing(_: Service, _over: asyncio.Event) -> None:
    """Leave the others alone."""


async def big_values(service: Service, over: asyncio.Event) -> None:
    """Put a big value into the own row, and ask for the own token over and over."""
    await service.tenant.patch(display_name="x" * service.size.tenant_octets)
    while not over.is_set():
        await service.ask()
        await asyncio.sleep(PAUSE)


async def infinity(service: Service, over: asyncio.Event) -> None:
    """Say that the own token never runs out, over and over."""
    while not over.is_set():
        await service.tenant.send("update public.spotify_connections set expires_at = 'infinity'")
        await service.ask()
        await asyncio.sleep(PAUSE)


async def row_lock(service: Service, over: asyncio.Event) -> None:
    """Lock the own row by a request that does not end, and ask the service to disconnect, ten times at once."""
    async with service.tenant.request() as session:
        await session.execute("delete from public.spotify_connections")
        disconnect = service.tokens.disconnect
        disconnects = [asyncio.ensure_future(disconnect(service.tenant.user_id)) for _ in range(DISCONNECTS)]
        await over.wait()
    await asyncio.gather(*disconnects, return_exceptions=True)


async def odd_tokens(service: Service, over: asyncio.Event) -> None:
    """Put refresh tokens into the own row that Spotify answers as if the app were at fault, and ask for the own."""
    errors = cycle(("invalid_request", "invalid_client"))
    while not over.is_set():
        change = "update public.spotify_connections set refresh_token = $1, expires_at = now()"
        await service.tenant.send(change, f"{ODD}{next(errors)}")
        await service.ask()
        await asyncio.sleep(PAUSE)


async def made_up_codes(service: Service, over: asyncio.Event) -> None:
    """Come back from the consent page with codes that Spotify has not given."""
    while not over.is_set():
        with suppress(SpotconnError):
            url = await service.flow.start(service.tenant.user_id)
            state = parse_qs(urlsplit(url).query)["state"][0]
            await service.flow.finish(service.tenant.user_id, f"{REDIRECT_URI}?code=made-up&state={state}")
        await asyncio.sleep(PAUSE)


ATTACKS: dict[str, Attack] = {
    "values": big_values,
    "infinity": infinity,
    "lock": row_lock,
    "answers": odd_tokens,
    "codes": made_up_codes,
}


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """The 99th percentile beside each attack over that of a quiet time, with and without lock_down.sql.

    Each ratio is the worse one of a service that caches tokens and of one that does not.
    """
    figures: list[Figure] = []
    async with gathered(server, "neighbours", USERS + 1) as crowd:
        for level in ("", "_locked_down"):
            if level:
                await _lock_down(crowd)
            cached = await _rounds(crowd, size, CACHED)
            read = await _rounds(crowd, size, 0)
            for kind, rounds in (("cached", cached), ("read", read)):
                quiet = statistics.median(rounds.seconds["quiet"])
                figures.append(Figure(f"tenant_{kind}_quiet_p99_ms{level}", quiet * 1e3))
            figures += [
                Figure(f"tenant_{name}{level}", max(cached.ratio(name, "quiet"), read.ratio(name, "quiet")))
                for name in ATTACKS
            ]
    return figures


async def _lock_down(crowd: Crowd) -> None:
    async with connected(crowd.database.admin_dsn) as admin:
        await admin.execute((ROOT / "sql" / "lock_down.sql").read_text())


async def _rounds(crowd: Crowd, size: Size, cache_ttl: float) -> Rounds:
    """Measure each attack against a service of its own: what one leaves behind is not there for the next."""
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(connected(crowd.database.admin_dsn))
        contenders: dict[str, Round] = {}
        for name, attack in {"quiet": nothing, **ATTACKS}.items():
            service = await stack.enter_async_context(_serving(crowd, size, cache_ttl))
            contenders[name] = _round(service, attack, crowd, admin)
        return await interleaved(contenders, size.tenant_rounds)


@asynccontextmanager
async def _serving(crowd: Crowd, size: Size, cache_ttl: float) -> AsyncGenerator[Service]:
    async with (
        ConnectionStore.open(crowd.database.dsn()) as store,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=crowd.url, api_url=crowd.url) as accounts,
        TokenManager(store, accounts, cache_ttl=cache_ttl) as tokens,
        ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=()) as flow,
        signed_in(crowd.database.dsn("handmade"), crowd.users[0]) as tenant,
    ):
        yield Service(tokens, flow, tenant, size)


def _round(service: Service, attack: Attack, crowd: Crowd, admin: asyncpg.Connection) -> Round:
    others = crowd.users[1:]

    async def run() -> float:
        await admin.execute(_RESTORE, crowd.users[0])
        await crowd.expire(others[::2])
        over = asyncio.Event()
        attacker = asyncio.create_task(attack(service, over))
        calls = await _called(service, others)
        over.set()
        await attacker
        return _percentile_99(await asyncio.gather(*calls))

    return run


async def _called(service: Service, users: Sequence[UUID]) -> "list[asyncio.Task[float]]":
    """Call for each user at every interval, without waiting for the answers."""
    loop = asyncio.get_running_loop()
    calls: list[asyncio.Task[float]] = []
    due = loop.time()
    for _ in range(service.size.tenant_calls):
        for user in users:
            calls.append(asyncio.ensure_future(_seconds(service.tokens, user, due)))
            due += INTERVAL / len(users)
            await asyncio.sleep(due - loop.time())
    return calls


async def _seconds(tokens: TokenManager, user: UUID, due: float) -> float:
    try:
        await tokens.get_valid_token(user)
    except SpotconnError:
        return REFUSED
    return asyncio.get_running_loop().time() - due


def _percentile_99(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[-1]
