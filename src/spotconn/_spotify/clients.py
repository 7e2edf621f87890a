"""Clients of httpx for many calls at once.

The time that httpcore takes for one call grows with the connections and calls of its pool, because it looks through
all of them. So many calls share several clients with few connections each. The first ones are preferred, so that a
quiet process has one client and a warm connection.
"""

import ssl
from collections.abc import Callable, Generator, Mapping
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from spotconn._spotify.environment import proxy_of, proxy_setting, tls_context

CALLS = 4
"""Calls under way at once that one client takes, each over a connection of its own."""

_UNLIMITED = httpx.Limits(max_connections=None, max_keepalive_connections=None)


class Clients:
    """Clients that are made as they are needed and stay open.

    The first one is made at once, which shows whether any can be made.

    Args:
        make: makes one. It must not limit its connections: httpcore never frees a connection whose call is cancelled
            at the wrong moment, and no call may have to wait for such a one.
    """

    def __init__(self, make: Callable[[], httpx.AsyncClient]) -> None:
        self._make = make
        self._calls = {make(): 0}

    @contextmanager
    def borrow(self) -> Generator[httpx.AsyncClient]:
        """Context manager: borrow a client for one call."""
        client = next((one for one, calls in self._calls.items() if calls < CALLS), None)
        if client is None:
            client = self._make()
        self._calls[client] = self._calls.get(client, 0) + 1
        try:
            yield client
        finally:
            self._calls[client] -= 1

    async def aclose(self) -> None:
        """Close all clients, also when it is cancelled or one of them cannot be closed."""
        async with AsyncExitStack() as closing:
            for client in self._calls:
                closing.push_async_callback(client.aclose)


def client_factory(*base_urls: str) -> Callable[[], httpx.AsyncClient]:
    """Return a function that makes a client for these base URLs.

    Raises:
        ConfigurationError: the environment sets TLS, or a proxy for one of them, in a way that cannot be used.
    """
    # Plain http is for this host only: a proxy of the environment would read it.
    secure = [url for url in base_urls if httpx.URL(url).scheme == "https"]
    # Shared, as to load the certificates takes longer than all the rest. One without any trusts no server.
    context = tls_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings = {url: proxy_setting(httpx.URL(url)) for url in secure}
    proxies = {url: proxy_of(setting) for url, setting in settings.items() if setting is not None}
    return partial(_client, context, proxies)


def _client(context: ssl.SSLContext, proxies: Mapping[str, httpx.Proxy]) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        limits=_UNLIMITED,
        # One client serves many users: a cookie set for one must not be sent for the next.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        mounts={
            url: httpx.AsyncHTTPTransport(verify=context, limits=_UNLIMITED, proxy=proxy)
            for url, proxy in proxies.items()
        },
        verify=context,
        trust_env=False,  # the environment has been read
    )
