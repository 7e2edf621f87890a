"""A token from the cache of the process, against the least that any coroutine could do and against the peers."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import cycle, islice
from uuid import UUID

from benchmarks import peers
from benchmarks.place import managing, new_database, stored_users
from benchmarks.rounds import Figure, each, interleaved
from benchmarks.sizes import Size
from spotconn import TokenManager
from spotconn.testing import EmbeddedPostgres

USERS = 1000


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Ratios to the limit and to the peers, and what each takes."""
    database = await new_database(server, "warm", rows=USERS)
    users = await stored_users(database)
    async with managing(database.dsn(), cache_ttl=3600) as tokens:
        by_user = {user: (await tokens.get_valid_token(user), time.time() + 3600) for user in users}
        same = list(islice(cycle(users), size.warm_calls))
        # As each request of a service brings them: equal to those in the cache, but not the same objects.
        equal = [UUID(int=user.int) for user in same]
        contenders = _contenders(tokens, by_user, same, equal)
        rounds = await interleaved(contenders, size.rounds)
    return [
        Figure("warm_vs_limit", rounds.ratio("warm", "warm_limit")),
        Figure("warm_vs_authlib", rounds.ratio("warm_authlib", "warm")),
        Figure("warm_vs_google_auth", rounds.ratio("warm_google_auth", "warm")),
        Figure("warm_vs_tekore", rounds.ratio("warm_tekore", "warm")),
        Figure("warm_vs_limit_equal_uuid", rounds.ratio("warm_equal_uuid", "warm_limit_equal_uuid")),
        *rounds.figures(),
    ]


def _contenders(
    tokens: TokenManager, by_user: Mapping[UUID, tuple[str, float]], same: Sequence[UUID], equal: Sequence[UUID]
) -> dict[str, Callable[[], Awaitable[float]]]:
    async def limit(user: UUID) -> str | None:
        token, ends = by_user[user]
        return token if time.time() < ends else None

    return {
        "warm": each(tokens.get_valid_token, lambda: same),
        "warm_limit": each(limit, lambda: same),
        "warm_authlib": each(peers.authlib(), lambda: same),
        "warm_google_auth": each(peers.google_auth(), lambda: same),
        "warm_tekore": each(peers.tekore_token(), lambda: same),
        "warm_equal_uuid": each(tokens.get_valid_token, lambda: equal),
        "warm_limit_equal_uuid": each(limit, lambda: equal),
    }
