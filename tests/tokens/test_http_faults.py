"""A fault of the HTTP client or of this host: the lease ends, this process backs off, and nothing is recorded."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn import (
    ConfigurationError,
    ConnectionStore,
    RefreshInProgress,
    SpotconnError,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
    events,
)
from spotconn.models import TokenGrant
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.invariants import recorded
from support.tls import certificate, tls_front

URL = "https://spotify.example"


def raises(error: BaseException) -> httpx.AsyncClient:
    """A client whose transport raises an error in place of an answer."""

    def respond(_request: httpx.Request) -> httpx.Response:
        raise error

    return httpx.AsyncClient(transport=httpx.MockTransport(respond))


class ClosedResourceError(Exception):
    """Like the one of anyio, which httpx does not map in each place."""


FAULTS: dict[str, tuple[BaseException, type[SpotconnError]]] = {
    "KeyError": (KeyError("x"), SpotifyUnavailable),
    "RuntimeError": (RuntimeError("deque mutated during iteration"), SpotifyUnavailable),
    "ClosedResourceError": (ClosedResourceError(), SpotifyUnavailable),
    "httpx": (httpx.ReadError("x"), SpotifyUnavailable),
    "InvalidURL": (httpx.InvalidURL("x"), SpotifyUnavailable),
    "pytest.fail": (pytest.fail.Exception("x"), SpotifyUnavailable),
}


async def check_fault(
    tokens: TokenManager, user: UUID, admin: asyncpg.Connection, expected: type[SpotconnError]
) -> None:
    """Ask twice: the second call hears the local backoff at once, and no lease or failure is left."""
    for _ in range(2):
        async with asyncio.timeout(5):
            with pytest.raises(SpotconnError) as raised:
                await tokens.get_valid_token(user)
        assert type(raised.value) is expected
        state = await recorded(admin, user)
        assert state is None or (state["leased"], state["failure"]) == (False, None)
    assert tokens._source.refresher.backoffs._backoffs


@pytest.mark.parametrize(("error", "expected"), FAULTS.values(), ids=FAULTS)
async def test_what_a_client_raises_leaves_no_lease(
    error: BaseException,
    expected: type[SpotconnError],
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    admin: asyncpg.Connection,
) -> None:
    """Another process can refresh at once."""
    await connect(store, spotify, user, ttl=-1)
    async with raises(error) as http:
        accounts = SpotifyAccounts("demo-client", http=http, accounts_url=URL)
        async with TokenManager(store, accounts, refresh_timeout=0.3) as tokens:
            await check_fault(tokens, user, admin, expected)


async def test_a_closed_client_leaves_no_lease(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """A client that another lifespan has closed is named; the user is not marked."""
    await connect(store, spotify, user, ttl=-1)
    http = httpx.AsyncClient()
    await http.aclose()
    async with TokenManager(store, SpotifyAccounts("demo-client", http=http)) as tokens:
        await check_fault(tokens, user, admin, ConfigurationError)


async def test_a_certificate_that_does_not_verify_marks_nobody(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    """The network of one host is at fault, as with a proxy that reads TLS: other processes refresh."""
    await connect(store, spotify, user, ttl=-1)
    async with (
        spotify.serve() as plain,
        tls_front(urlsplit(plain).port or 0, certificate(tmp_path)) as port,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=f"https://127.0.0.1:{port}") as here,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=plain) as elsewhere,
        TokenManager(store, here) as tokens,
        TokenManager(store, elsewhere) as other,
    ):
        await check_fault(tokens, user, admin, ConfigurationError)
        assert spotify.accepts(await other.get_valid_token(user))


class Failing(SpotifyAccounts):
    """Accounts whose refresh raises what no contract allows."""

    failure: Exception = RuntimeError("closed meanwhile")

    async def refresh(
        self,
        refresh_token: str,
        *,
        user_id: UUID | None = None,
        timeout: float = 10,  # noqa: ASYNC109  the deadline is over all attempts
        begin_within: float | None = None,
    ) -> TokenGrant:
        del refresh_token, user_id, timeout, begin_within
        raise self.failure


async def test_an_unforeseen_error_leaves_no_lease(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """Any other exception passes as it is; the lease ends, this process backs off, and the event names no secret."""
    seen: list[events.Event] = []
    await connect(store, spotify, user, ttl=-1)
    async with TokenManager(store, Failing("demo-client"), on_event=seen.append) as tokens:
        with pytest.raises(RuntimeError, match="closed meanwhile"):
            await tokens.get_valid_token(user)
        state = await recorded(admin, user)
        assert state is None or (state["leased"], state["failure"]) == (False, None)
        with pytest.raises(SpotifyUnavailable, match="the request to Spotify ended with RuntimeError"):
            await tokens.get_valid_token(user)
    (event,) = seen
    assert isinstance(event, events.RefreshFailed)
    assert (event.error, event.message) == ("SpotifyUnavailable", "the request to Spotify ended with RuntimeError")


async def test_a_cancelled_refresh_leaves_its_lease_to_run_out(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """The request may have reached Spotify, so no other process repeats it at once."""
    await connect(store, spotify, user, ttl=-1)
    async with (
        TokenManager(store, accounts) as tokens,
        TokenManager(store, accounts, refresh_timeout=0.2, lease=1) as other,
    ):
        with spotify.hold() as held:
            caller = asyncio.create_task(tokens.get_valid_token(user))
            await held.reached()
            (refresh,) = tokens._source.refreshes.tasks
            refresh.cancel()
            await asyncio.wait([refresh, caller])
            with pytest.raises(RefreshInProgress):
                await other.get_valid_token(user)
            held.release()
    assert spotify.token_calls == 1
