"""Clients for many calls at once: one, or with httpx several with few connections each.

The first ones are preferred, so that a quiet process has one client and a warm connection.
"""

import ssl
from collections.abc import Callable, Generator, Mapping
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urlsplit

from spotconn._spotify.environment import proxy_of, proxy_setting, tls_context
from spotconn._spotify.http_library import CALLS_PER_CLIENT, IDLE_PER_CLIENT, library

_LIMITS = library.Limits(max_connections=None, max_keepalive_connections=IDLE_PER_CLIENT)


class Clients:
    """Clients that are made as they are needed and stay open.

    The first one is made at once, which shows whether any can be made.

    Args:
        make: makes one. It must not limit its connections: httpcore never frees a connection whose call is cancelled
            at the wrong moment, and no call may have to wait for such a one.
    """

    def __init__(self, make: Callable[[], library.AsyncClient]) -> None:
        self._make = make
        self._calls = {make(): 0}

    @contextmanager
    def borrow(self) -> Generator[library.AsyncClient]:
        """Context manager: borrow a client for one call."""
        client = next((one for one, calls in self._calls.items() if calls < CALLS_PER_CLIENT), None)
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


def client_factory(*base_urls: str) -> Callable[[], library.AsyncClient]:
    """Return a function that makes a client for these base URLs.

    Raises:
        ConfigurationError: the environment sets TLS, or a proxy for one of them, in a way that cannot be used.
    """
    # Plain http is for this host only: a proxy of the environment would read it.
    secure = [_origin(url) for url in base_urls if urlsplit(url).scheme == "https"]
    # Shared, as to load the certificates takes longer than all the rest. One without any trusts no server.
    context = tls_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings = {url: proxy_setting(url) for url in secure}
    proxies = {url: proxy_of(setting) for url, setting in settings.items() if setting is not None}
    return partial(_client, context, proxies)


def _origin(url: str) -> str:
    # For what is proxied the path does not count, and httpx2 would read one such as /24 as that of a network.
    return urlsplit(url)._replace(path="").geturl()


def _client(context: ssl.SSLContext, proxies: Mapping[str, library.Proxy]) -> library.AsyncClient:
    return library.AsyncClient(
        limits=_LIMITS,
        # One client serves many users: a cookie set for one must not be sent for the next.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        mounts={
            url: library.AsyncHTTPTransport(verify=context, limits=_LIMITS, proxy=proxy)
            for url, proxy in proxies.items()
        },
        verify=context,
        trust_env=False,  # the environment has been read
    )
