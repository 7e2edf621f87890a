"""The simulated Spotify as a process of its own.

Arguments: the number of accounts, seconds before each token answer. It prints its URL with a grant of each account, and
for each line of its standard input the seconds of processor time that it has used.
"""

import asyncio
import json
import sys
import time

from benchmarks.strict_spotify import StrictSpotify
from support.fleet_worker import lines


async def main(accounts: str, latency: str) -> None:
    """Serve until the standard input ends."""
    spotify = StrictSpotify(latency=(float(latency), float(latency)))
    grants: list[tuple[str, str | None]] = []
    for number in range(int(accounts)):
        spotify.add_account(str(number))
        grant = spotify.authorize(str(number))
        grants.append((grant.access_token, grant.refresh_token))
    async with spotify.serve() as url:
        print(json.dumps({"url": url, "grants": grants}), flush=True)
        async for _ in lines():
            print(json.dumps(time.process_time()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
