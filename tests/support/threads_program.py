"""Four threads, each with event loops of its own, that share one manager; the loop it belongs to is over.

The arguments are the DSN, the URL of Spotify and a user. It prints each different outcome.
"""

import asyncio
import os
import sys
import threading
from contextlib import AsyncExitStack

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from support.public_coroutines import outcome

THREADS, CALLS = 4, 100


async def opened(stack: AsyncExitStack, dsn: str, url: str) -> TokenManager:
    store = await stack.enter_async_context(ConnectionStore.open(dsn))
    tokens = TokenManager(store, SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url))
    await store.verify()
    return tokens


def main(dsn: str, url: str, user: str) -> None:
    stack = AsyncExitStack()
    loop = asyncio.new_event_loop()
    tokens = loop.run_until_complete(opened(stack, dsn, url))
    loop.close()
    found = set[str]()

    def ask() -> None:
        for _ in range(CALLS):
            found.add(asyncio.run(outcome(tokens.status(user))))
            found.add(asyncio.run(outcome(tokens.get_valid_token(user))))

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*sorted(found), sep="\n", flush=True)
    os._exit(0)  # what is open belongs to a loop that is over


if __name__ == "__main__":
    main(*sys.argv[1:])
