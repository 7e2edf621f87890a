"""Every public call, made to fail in a cheap way."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from spotconn import (
    AesGcmSivCipher,
    Completed,
    ConfigurationError,
    ConnectFailed,
    ConnectFlow,
    Connection,
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    DecryptionError,
    MissingScope,
    NotConnected,
    Profile,
    ReauthorizationRequired,
    RefreshFailure,
    SpotifyAccounts,
    SpotifyAuth,
    SpotifyUnavailable,
    TokenGrant,
    TokenManager,
    UnknownUser,
)
from spotconn.models import fingerprint
from spotconn.testing import Answer, FakeSpotify
from spotconn.turns import Outcome, RefreshTurn
from support.consent import REDIRECT_URI
from support.database import Database
from support.fault_proxy import FaultProxy
from support.times import set_times

TOKEN, STRANGER = "marked-token", uuid4()
CALLBACK = f"{REDIRECT_URI}?code=marked-code&state=1.{'s' * 43}"
NOWHERE = "postgresql://app:app@127.0.0.1:1/spotconn"
NOW = datetime.now(UTC)
SEEN = fingerprint(TOKEN)
NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001  the point
SHORT = 0.05
"""Seconds for what a test waits out."""


@dataclass
class Setup:
    """Two users, of whom the first is connected, and a way to Postgres that can be cut."""

    database: Database
    proxy: FaultProxy
    spotify: FakeSpotify
    store: ConnectionStore
    accounts: SpotifyAccounts
    tokens: TokenManager
    flow: ConnectFlow
    overseer: ConnectionAdmin
    connected: Connection
    nobody: UUID
    until_the_end: ExitStack

    @property
    def user(self) -> UUID:
        """The one who is connected."""
        return self.connected.user_id

    def secrets(self) -> set[str]:
        """All tokens and secrets there are."""
        issued = self.spotify._tokens
        return {*issued.access, *issued.refresh, *issued.revoked, TOKEN, "marked-code", "demo-secret"}

    @asynccontextmanager
    async def superuser(self) -> AsyncGenerator[asyncpg.Connection]:
        """A superuser's connection past the proxy."""
        connection = await asyncpg.connect(self.database.admin_dsn)
        try:
            yield connection
        finally:
            await connection.close()


def manager(store: ConnectionStore, accounts: SpotifyAccounts) -> TokenManager:
    """Make a manager that does not listen."""
    store.changes = None
    return TokenManager(store, accounts)


def hurry(setup: Setup) -> None:
    """Give each refresh that begins from now on little time at Spotify."""
    set_times(setup.tokens, timeout=1)


# What makes a call fail.


async def as_it_is(_setup: Setup) -> None:
    """Leave all as it is."""


async def away(setup: Setup) -> None:
    """Take the database away."""
    setup.proxy.refuses = True
    setup.proxy.cut()


async def closed(setup: Setup) -> None:
    """Close the manager."""
    await setup.tokens.aclose()


async def expired(setup: Setup) -> None:
    """Let the access token of the user end."""
    async with setup.superuser() as admin:
        await admin.execute("update public.spotify_connections set expires_at = now() - interval '1 hour'")


async def revoked(setup: Setup) -> None:
    """Let the user end the consent, with an access token that has ended."""
    await expired(setup)
    setup.spotify.revoke("alice")


async def unavailable(setup: Setup) -> None:
    """Let Spotify answer 503, with an access token that has ended."""
    await expired(setup)
    hurry(setup)
    setup.spotify.script(*[Answer.unavailable()] * 1000)


async def unreachable(setup: Setup) -> None:
    """Let connections to Spotify be reset, with an access token that has ended."""
    await expired(setup)
    hurry(setup)
    setup.spotify.script(*[Answer.reset()] * 1000)


async def throttled(setup: Setup) -> None:
    """Let Spotify ask the app to wait for a minute."""
    setup.spotify.script(Answer.too_many_requests("60"))
    with pytest.raises(SpotifyUnavailable):
        await setup.accounts.refresh(TOKEN, timeout=4 * SHORT)


async def refused(setup: Setup) -> None:
    """Let Spotify refuse what the app asks for, with an access token that has ended."""
    await expired(setup)
    setup.spotify.script(*[Answer(status=400, json={"error": "unsupported_grant_type"})] * 1000)


@dataclass(frozen=True)
class Failure:
    """A public call that fails.

    Attributes:
        name: of the call.
        kind: of the error.
        call: makes it.
        prepare: makes it fail.
    """

    name: str
    kind: type[BaseException]
    call: Callable[[Setup], Awaitable[object]]
    prepare: Callable[[Setup], Awaitable[None]] = as_it_is

    def __str__(self) -> str:
        """Name it as a test."""
        return f"{self.name}-{self.kind.__name__}-{self.prepare.__name__}"


async def enter(block: AbstractAsyncContextManager[object]) -> None:
    async with block:
        pytest.fail("the block was entered")


async def drain(answers: AsyncIterator[object]) -> None:
    async for _ in answers:
        pass


async def request(setup: Setup, user: UUID) -> None:
    auth = setup.tokens.auth(user, allow=[setup.accounts.api_url])
    async with httpx.AsyncClient(auth=auth) as client:
        await client.get(f"{setup.accounts.api_url}/v1/me")


async def cancelled(call: Awaitable[object]) -> None:
    """Cancel the caller itself at the first await of a call that raises nothing of its own."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        await call
    finally:
        task.uncancel()


async def close_accounts(setup: Setup) -> None:
    """Close accounts that have an open connection."""
    url = setup.accounts.api_url
    accounts = SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url)
    with pytest.raises(ReauthorizationRequired):
        await accounts.refresh(TOKEN)
    await cancelled(accounts.aclose())


async def check_closed(_setup: Setup) -> None:
    """Ask accounts that are closed whether a connect would be admitted."""
    accounts = SpotifyAccounts("demo-client", "demo-secret")
    await accounts.aclose()
    accounts.check_connect()


async def run_sync(call: Callable[[], object]) -> object:
    return call()


def signed_in() -> Completed:
    ends = datetime.now(UTC) + timedelta(hours=1)
    grant = TokenGrant(access_token=TOKEN, refresh_token=TOKEN, expires_at=ends)
    return Completed(grant=grant, profile=Profile(spotify_user_id="alice"))


def flow_of(setup: Setup) -> SpotifyAuth:
    return setup.tokens.auth(setup.user)


async def reject(setup: Setup) -> object:
    return await setup.tokens.replace_rejected(setup.user, setup.connected.access_token)


async def exchange(setup: Setup) -> object:
    return await setup.accounts.exchange_code("marked-code", redirect_uri=REDIRECT_URI, code_verifier=TOKEN * 4)


def granted(setup: Setup) -> RefreshTurn:
    return RefreshTurn(
        outcome=Outcome.GRANTED,
        user_id=setup.user,
        connection=setup.connected,
        lease_id=setup.connected.id,
        lease_until=NOW,
    )


def gone(setup: Setup) -> RefreshTurn:
    return RefreshTurn(outcome=Outcome.GONE, user_id=setup.nobody)


GRANT = TokenGrant(access_token="marked-access", refresh_token="marked-refresh", expires_at=datetime.now(UTC))
PROFILE, RECORD = Profile(spotify_user_id="alice"), RefreshFailure()
FAR = timedelta(days=365)
RING = AesGcmSivCipher([AesGcmSivCipher.generate_key()])

FAILURES = [
    Failure("ConnectionStore.get", ValueError, lambda at: at.store.get(TOKEN)),
    Failure("ConnectionStore.get", NotConnected, lambda at: at.store.get(at.nobody)),
    Failure("ConnectionStore.get", DatabaseUnavailable, lambda at: at.store.get(at.user), away),
    Failure("ConnectionStore.get_many", DatabaseUnavailable, lambda at: at.store.get_many([at.user]), away),
    Failure("ConnectionStore.save", UnknownUser, lambda at: at.store.save(STRANGER, GRANT, PROFILE)),
    Failure("ConnectionStore.save", DatabaseUnavailable, lambda at: at.store.save(at.user, GRANT, PROFILE), away),
    Failure("ConnectionStore.check_save", UnknownUser, lambda at: at.store.check_save(STRANGER)),
    Failure("ConnectionStore.check_save", DatabaseUnavailable, lambda at: at.store.check_save(at.user), away),
    Failure("ConnectionStore.delete", DatabaseUnavailable, lambda at: at.store.delete(at.user), away),
    Failure("ConnectionStore.verify", DatabaseUnavailable, lambda at: at.store.verify(), away),
    Failure(
        "ConnectionStore.begin_refresh",
        DatabaseUnavailable,
        lambda at: at.store.begin_refresh(at.user, seen=SEEN),
        away,
    ),
    Failure("ConnectionStore.finish_refresh", ValueError, lambda at: at.store.finish_refresh(gone(at), GRANT)),
    Failure(
        "ConnectionStore.finish_refresh",
        DatabaseUnavailable,
        lambda at: at.store.finish_refresh(granted(at), GRANT),
        away,
    ),
    Failure(
        "ConnectionStore.fail_refresh", DatabaseUnavailable, lambda at: at.store.fail_refresh(granted(at), RECORD), away
    ),
    Failure("ConnectionStore.as_user", ValueError, lambda at: enter(at.store.as_user(TOKEN))),
    Failure("ConnectionStore.as_user", DatabaseUnavailable, lambda at: enter(at.store.as_user(at.user)), away),
    Failure("ConnectionStore.open", DatabaseUnavailable, lambda _: enter(ConnectionStore.open(NOWHERE))),
    Failure("SpotifyAccounts.exchange_code", ConnectFailed, exchange),
    Failure("SpotifyAccounts.exchange_code", ConfigurationError, exchange, refused),
    Failure("SpotifyAccounts.refresh", ReauthorizationRequired, lambda at: at.accounts.refresh(TOKEN)),
    Failure("SpotifyAccounts.refresh", ConfigurationError, lambda at: at.accounts.refresh(TOKEN), refused),
    Failure(
        "SpotifyAccounts.refresh", SpotifyUnavailable, lambda at: at.accounts.refresh(TOKEN, timeout=SHORT), throttled
    ),
    Failure(
        "SpotifyAccounts.refresh", SpotifyUnavailable, lambda at: at.accounts.refresh(TOKEN, timeout=SHORT), unreachable
    ),
    Failure("SpotifyAccounts.check_connect", RuntimeError, check_closed),
    Failure("SpotifyAccounts.profile", ConnectFailed, lambda at: at.accounts.profile(TOKEN)),
    Failure("SpotifyAccounts.aclose", asyncio.CancelledError, close_accounts),
    Failure("TokenManager.from_env", ConfigurationError, lambda _: enter(TokenManager.from_env())),
    Failure("TokenManager.get_valid_token", ValueError, lambda at: at.tokens.get_valid_token(TOKEN)),
    Failure("TokenManager.get_valid_token", NotConnected, lambda at: at.tokens.get_valid_token(at.nobody)),
    Failure("TokenManager.get_access_token", NotConnected, lambda at: at.tokens.get_access_token(at.nobody)),
    Failure("TokenManager.get_access_token", DatabaseUnavailable, lambda at: at.tokens.get_access_token(at.user), away),
    Failure("TokenManager.get_valid_token", MissingScope, lambda at: at.tokens.get_valid_token(at.user, scopes=["a"])),
    *[
        Failure("TokenManager.get_valid_token", kind, lambda at: at.tokens.get_valid_token(at.user), prepare)
        for kind, prepare in (
            (DatabaseUnavailable, away),
            (SpotifyUnavailable, unavailable),
            (SpotifyUnavailable, unreachable),
            (ReauthorizationRequired, revoked),
            (ConfigurationError, refused),
            (RuntimeError, closed),
        )
    ],
    Failure("TokenManager.get_valid_tokens", ValueError, lambda at: drain(at.tokens.get_valid_tokens([TOKEN]))),
    Failure(
        "TokenManager.get_valid_tokens", ValueError, lambda at: run_sync(lambda: at.tokens.get_valid_tokens(TOKEN))
    ),
    Failure(
        "TokenManager.get_valid_tokens",
        ConfigurationError,
        lambda at: drain(at.tokens.get_valid_tokens([at.user])),
        refused,
    ),
    Failure(
        "TokenManager.get_valid_tokens", RuntimeError, lambda at: drain(at.tokens.get_valid_tokens([at.user])), closed
    ),
    Failure("TokenManager.replace_rejected", ValueError, lambda at: at.tokens.replace_rejected(TOKEN, TOKEN)),
    Failure("TokenManager.replace_rejected", NotConnected, lambda at: at.tokens.replace_rejected(at.nobody, TOKEN)),
    Failure("TokenManager.replace_rejected", ReauthorizationRequired, reject, revoked),
    Failure("TokenManager.replace_rejected", SpotifyUnavailable, reject, unavailable),
    Failure("TokenManager.auth", ValueError, lambda at: run_sync(lambda: at.tokens.auth(TOKEN))),
    Failure("TokenManager.status", DatabaseUnavailable, lambda at: at.tokens.status(at.user), away),
    Failure("TokenManager.check", DatabaseUnavailable, lambda at: at.tokens.check(), away),
    Failure("TokenManager.report_answer", ValueError, lambda at: run_sync(lambda: at.tokens.report_answer(TOKEN, 403))),
    Failure("TokenManager.disconnect", DatabaseUnavailable, lambda at: at.tokens.disconnect(at.user), away),
    Failure("SpotifyAuth.async_auth_flow", NotConnected, lambda at: request(at, at.nobody)),
    Failure("SpotifyAuth.async_auth_flow", ReauthorizationRequired, lambda at: request(at, at.user), revoked),
    Failure(
        "SpotifyAuth.sync_auth_flow", RuntimeError, lambda at: run_sync(lambda: next(flow_of(at).sync_auth_flow(None)))
    ),
    Failure("SpotifyAuth.auth_flow", RuntimeError, lambda at: run_sync(lambda: next(flow_of(at).auth_flow(None)))),
    Failure("ConnectFlow.start", UnknownUser, lambda at: at.flow.start(STRANGER)),
    Failure("ConnectFlow.start", DatabaseUnavailable, lambda at: at.flow.start(at.user), away),
    Failure("ConnectFlow.begin", ValueError, lambda at: at.flow.begin(None, data={"name": TOKEN * 100})),
    Failure("ConnectFlow.begin", DatabaseUnavailable, lambda at: at.flow.begin(None), away),
    Failure("ConnectFlow.complete", ConnectFailed, lambda at: at.flow.complete(CALLBACK, TOKEN)),
    Failure("ConnectFlow.complete", DatabaseUnavailable, lambda at: at.flow.complete(CALLBACK, TOKEN), away),
    Failure("ConnectFlow.complete_unbound", ConnectFailed, lambda at: at.flow.complete_unbound(CALLBACK)),
    Failure("ConnectFlow.save", ValueError, lambda at: at.flow.save(TOKEN, signed_in())),
    Failure("ConnectFlow.finish", ConnectFailed, lambda at: at.flow.finish(at.user, CALLBACK)),
    Failure("ConnectFlow.finish", DatabaseUnavailable, lambda at: at.flow.finish(at.user, CALLBACK), away),
    Failure(
        "ConnectFlow.from_env",
        ConfigurationError,
        lambda at: run_sync(lambda: ConnectFlow.from_env(at.store, at.accounts, scopes=())),
    ),
    Failure("ConnectionAdmin.open", DatabaseUnavailable, lambda _: enter(ConnectionAdmin.open(NOWHERE))),
    Failure("ConnectionAdmin.expiring", DatabaseUnavailable, lambda at: drain(at.overseer.expiring(within=FAR)), away),
    Failure("ConnectionAdmin.failing", DatabaseUnavailable, lambda at: drain(at.overseer.failing()), away),
    Failure("ConnectionAdmin.mark_asked", ValueError, lambda at: at.overseer.mark_asked([TOKEN])),
    Failure("ConnectionAdmin.mark_asked", DatabaseUnavailable, lambda at: at.overseer.mark_asked([at.user]), away),
    Failure("ConnectionAdmin.stats", DatabaseUnavailable, lambda at: at.overseer.stats(), away),
    Failure("ConnectionAdmin.rekey", ConfigurationError, lambda at: at.overseer.rekey()),
    Failure("ConnectionAdmin.move", ValueError, lambda at: at.overseer.move(at.user, at.user)),
    Failure("ConnectionAdmin.move", DatabaseUnavailable, lambda at: at.overseer.move(at.user, at.nobody), away),
    Failure("ConnectionAdmin.migrate", ValueError, lambda at: drain(at.overseer.migrate("nowhere"))),
    Failure("ConnectionAdmin.migrate", DatabaseUnavailable, lambda at: drain(at.overseer.migrate("nowhere")), away),
    Failure("ConnectionAdmin.recheck", ValueError, lambda at: at.overseer.recheck(since=NAIVE)),
    Failure("ConnectionAdmin.recheck", DatabaseUnavailable, lambda at: at.overseer.recheck(since=NOW), away),
    Failure("ConnectionAdmin.prune", ValueError, lambda at: at.overseer.prune(dead_for=-FAR)),
    Failure("ConnectionAdmin.prune", DatabaseUnavailable, lambda at: at.overseer.prune(dead_for=FAR), away),
    Failure("ConnectionAdmin.assign_app", ValueError, lambda at: at.overseer.assign_app("")),
    Failure("ConnectionAdmin.assign_app", DatabaseUnavailable, lambda at: at.overseer.assign_app("an-app"), away),
    Failure(
        "AesGcmSivCipher.decrypt",
        DecryptionError,
        lambda _: run_sync(lambda: RING.decrypt("spotconn1.x", user_id=STRANGER, column="access_token")),
    ),
]
