"""One process that asks for a user's token when told to; tests kill it.

The first line of standard input gives the settings as JSON, each further line is a user id. It prints a line when it
is ready and one line of JSON for each answer: the beginning of the token's SHA-256, or the error. It ends at once
with its standard input, so it does not outlive its parent.
"""

import asyncio
import hashlib
import json
import os
import sys
from typing import Any

from spotconn import ConnectionStore, ReauthorizationRequired, SpotconnError, SpotifyAccounts, TokenManager, TryLater


def digest(token: str) -> str:
    """What may be told of a token."""
    return hashlib.sha256(token.encode()).hexdigest()[:12]


async def ask(tokens: TokenManager, user_id: str) -> dict[str, Any]:
    try:
        return {"token": digest(await tokens.get_valid_token(user_id))}
    except TryLater as error:
        return {"error": type(error).__name__, "retry_after": error.retry_after}
    except ReauthorizationRequired as error:
        return {"error": type(error).__name__, "reason": error.reason}
    except SpotconnError as error:
        return {"error": type(error).__name__}


async def answer(tokens: TokenManager, user_id: str) -> None:
    print(json.dumps(await ask(tokens, user_id)), flush=True)


async def main() -> None:
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    settings = json.loads(await orders.readline() or "null")
    if settings is None:
        return
    async with (
        ConnectionStore.open(settings["dsn"], max_size=2) as store,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=settings["url"]) as accounts,
        TokenManager(store, accounts, **settings["manager"]) as tokens,
        asyncio.TaskGroup() as answers,
    ):
        print("ready", flush=True)
        while line := await orders.readline():
            answers.create_task(answer(tokens, line.decode().strip()))
        # Nobody is left to answer, and a call may hang: do not wait for it.
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
