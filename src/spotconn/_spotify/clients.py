"""Clients of httpx for many calls at once.

What httpcore does for one call grows with the connections and the calls of its pool: it looks through all of them. So
many calls share several clients with few connections each. The first ones are preferred, so that a quiet process has
one client and a warm connection.
"""

from collections.abc import Callable, Generator
from contextlib import AsyncExitStack, contextmanager

import httpx

CALLS = 4
"""Calls under way at once that one client takes, each over a connection of its own."""


class Clients:
    """Clients that are made as they are needed, and kept; the first one at once, which shows whether any can be made.

    Args:
        make: makes one. It must not limit its connections: httpcore keeps one for good if its call is cancelled at
            the wrong moment, and no call may have to wait for such a one.
    """

    def __init__(self, make: Callable[[], httpx.AsyncClient]) -> None:
        self._make = make
        self._calls = {make(): 0}

    @contextmanager
    def lent(self) -> Generator[httpx.AsyncClient]:
        """Within: a client for one call."""
        client = next((one for one, calls in self._calls.items() if calls < CALLS), None)
        if client is None:
            client = self._make()
        self._calls[client] = self._calls.get(client, 0) + 1
        try:
            yield client
        finally:
            self._calls[client] -= 1

    async def aclose(self) -> None:
        """Close them all, also when it is cancelled or one cannot be closed."""
        async with AsyncExitStack() as closing:
            for client in self._calls:
                closing.push_async_callback(client.aclose)
