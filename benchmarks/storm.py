"""How often Spotify is asked when many tokens run out at once and several processes want all of them."""

from benchmarks.place import connected, new_database
from benchmarks.rounds import Figure
from benchmarks.sizes import Size
from spotconn.testing import EmbeddedPostgres, FakeSpotify
from support.fleet import connect_crowd, fleet, valid_digests

PROCESSES = 4
PATIENCE = 60.0
"""Seconds for which a process asks again after TryLater: what is counted is the calls."""


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Calls for each user.

    Raises:
        RuntimeError: some process did not get the token of some user that Spotify accepts.
    """
    spotify = FakeSpotify(rotation=True)
    database = await new_database(server, "storm")
    async with connected(database.admin_dsn) as admin:
        users = await connect_crowd(admin, spotify, size.storm_users)
        async with (
            spotify.serve() as url,
            fleet(database.dsn(), url, processes=PROCESSES, patience=PATIENCE) as started,
        ):
            answers = await started.ask(users)
        valid = await valid_digests(admin, spotify, users)
    if "" in valid or answers != [valid] * PROCESSES:
        raise RuntimeError("the fleet did not get the valid token of each user")
    return [Figure("storm_calls_per_user", spotify.token_calls / len(users))]
