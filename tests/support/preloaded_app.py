"""A WSGI application for `gunicorn --preload` that has opened and used a manager before its workers are forked.

Each request, GET /<user id>, asks the manager that the worker has inherited first, in the event loop of the module, and
then one that the worker has made. The answer holds both outcomes as JSON.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager

LOOP = asyncio.new_event_loop()
PID = os.getpid()


async def opened() -> TokenManager:
    stack = AsyncExitStack()
    url = os.environ["SPOTIFY_URL"]
    store = await stack.enter_async_context(ConnectionStore.open(os.environ["DATABASE_URL"], max_size=2))
    accounts = SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url)
    tokens = TokenManager(store, accounts)
    STACKS.append(stack)
    return tokens


STACKS: list[AsyncExitStack] = []
INHERITED = LOOP.run_until_complete(opened())
LOOP.run_until_complete(INHERITED.get_valid_token(os.environ["WARM_UP"]))
OWN: list[tuple[asyncio.AbstractEventLoop, TokenManager]] = []


def own() -> tuple[asyncio.AbstractEventLoop, TokenManager]:
    """Return the loop and the manager of this worker, made for its first request."""
    if not OWN:
        loop = asyncio.new_event_loop()
        OWN.append((loop, loop.run_until_complete(opened())))
    return OWN[0]


def ask(loop: asyncio.AbstractEventLoop, tokens: TokenManager, user: str) -> dict[str, str]:
    try:
        return {"token": loop.run_until_complete(tokens.get_valid_token(user))}
    except Exception as error:  # noqa: BLE001  whatever it is, it is looked at
        return {"error": f"{type(error).__name__}: {error}"}


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    user = environ["PATH_INFO"].strip("/")
    found = {"pid": os.getpid(), "master": PID, "inherited": ask(LOOP, INHERITED, user), "own": ask(*own(), user)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]
