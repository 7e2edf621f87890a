"""One process of a fleet: asks for every user's token at once, in rounds, and tells what it got.

Arguments: DSN, URL of Spotify, connections of the pool, seconds to try again after TryLater, seconds of a lease, its
apps as `id:secret`, separated by commas. Each line of standard input is a round: user ids as JSON. For each it prints
one line of JSON: in the same order, the SHA-256 of the token or the name of the error. It ends with its standard input,
so it does not outlive its parent.
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from spotconn import ConnectionStore, OtherApp, SpotconnError, SpotifyAccounts, TokenManager, TryLater


async def lines() -> AsyncIterator[str]:
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode()
    transport.close()


async def ask(tokens: TokenManager, user_id: str, patience: float) -> str:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while True:
        try:
            return hashlib.sha256((await tokens.get_valid_token(user_id)).encode()).hexdigest()
        except TryLater as error:
            delay = error.retry_after or 0.2
            if loop.time() + delay > deadline:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)  # which a test shows that fails
                return type(error).__name__
            await asyncio.sleep(delay)
        except OtherApp as error:
            return f"OtherApp: {error}"
        except SpotconnError as error:
            return type(error).__name__


async def main(dsn: str, url: str, connections: str, patience: str, lease: str, apps: str) -> None:
    seconds = float(lease)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(ConnectionStore.open(dsn, min_size=1, max_size=int(connections)))
        accounts, *others = [
            await stack.enter_async_context(SpotifyAccounts(*app, accounts_url=url, api_url=url))
            for app in (one.split(":") for one in apps.split(","))
        ]
        tokens = await stack.enter_async_context(
            TokenManager(
                store, accounts, other_apps=others, cache_ttl=0, refresh_timeout=seconds * 2 / 3, lease=seconds
            )
        )
        print("ready", flush=True)
        async for line in lines():
            users = json.loads(line)
            answers = await asyncio.gather(*[ask(tokens, user_id, float(patience)) for user_id in users])
            print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
