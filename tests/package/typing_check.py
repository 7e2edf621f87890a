"""What callers may write, and what they may not: read by mypy and pyright, and never run.

A line with ignores is a mistake that both checkers have to refuse: each reports an ignore that it does not need.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Literal, assert_never, assert_type
from uuid import UUID

import asyncpg
import httpx
import httpx2
from asyncpg.pool import PoolConnectionProxy
from fastapi import FastAPI
from starlette.datastructures import URL
from starlette.requests import Request

from spotconn import (
    AesGcmSivCipher,
    ConnectFailed,
    ConnectFlow,
    Connection,
    ConnectionAdmin,
    ConnectionOverview,
    ConnectionStats,
    ConnectionStatus,
    ConnectionStore,
    Profile,
    ReauthorizationRequired,
    RecordedFailure,
    RefreshFailure,
    RefreshTurn,
    RekeyProgress,
    SpotconnError,
    SpotifyAccounts,
    SpotifyAuth,
    TokenCipher,
    TokenGrant,
    TokenManager,
    TokenSource,
    TryLater,
    events,
    verify_connection,
)
from spotconn.testing import Answer, EmbeddedPostgres, FakeAccount, FakeClock, FakeSpotify, Hold, add_user
from spotconn.web import PROBLEM_RESPONSES, SpotifyRoutes, problem_details


async def a_token_is_text(tokens: TokenManager, user_id: UUID) -> None:
    assert_type(await tokens.get_valid_token(user_id), str)
    assert_type(await tokens.get_valid_token(str(user_id), scopes=["user-read-email"], min_ttl=60), str)
    assert_type(await tokens.replace_rejected(user_id, "token"), str)
    await tokens.get_valid_token(4711)
    assert_type(await verify_connection(tokens, 4711), bool)
    await tokens.get_valid_token(47.11)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await tokens.get_valid_token(user_id, ["a"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await tokens.get_valid_token(user_id, min_ttl="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await tokens.get_valid_token(user_id, scope="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await tokens.replace_rejected(user_id)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    not_awaited: str = tokens.get_valid_token(user_id)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    assert not_awaited


async def what_a_profile_page_shows(tokens: TokenManager, user_id: UUID) -> None:
    status = await tokens.status(user_id)
    assert_type(status, ConnectionStatus)
    assert_type(status.reauthorization, Literal["expired", "revoked", "invalid", "other_app"] | None)
    assert_type(status.reauthorize_by, datetime | None)
    assert_type(await tokens.disconnect(user_id), bool)
    assert_type(tokens.store, ConnectionStore)
    assert_type(tokens.accounts, SpotifyAccounts)
    status.access_token = "a"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    _ = status.reauthorize_by.year  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]


async def how_a_manager_is_made(store: ConnectionStore, accounts: SpotifyAccounts, clock: FakeClock) -> None:
    assert_type(TokenManager.from_env(), AbstractAsyncContextManager[TokenManager])
    async with TokenManager.from_env(cache_ttl=5) as from_env, TokenManager(store, accounts, clock=clock) as tokens:
        assert_type(from_env, TokenManager)
        assert_type(tokens, TokenManager)
        assert_type(await tokens.aclose(), None)
    TokenManager(store)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    TokenManager(store, store)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    TokenManager(store, accounts, clock=datetime.now)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    TokenManager(store, accounts, on_event=print, lease="15")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def what_a_client_takes(tokens: TokenManager, user_id: UUID) -> None:
    auth = tokens.auth(user_id, allow=["https://example.com"])
    assert_type(auth, SpotifyAuth)
    async with httpx.AsyncClient(auth=auth) as old, httpx2.AsyncClient(auth=auth) as new:
        assert_type(await old.get("https://api.spotify.com/v1/me"), httpx.Response)
        assert_type(await new.get("https://api.spotify.com/v1/me"), httpx2.Response)
    SpotifyAuth("token", user_id)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def what_gives_tokens(tokens: TokenManager, store: ConnectionStore) -> tuple[TokenSource, TokenSource]:
    return (
        tokens,
        store,  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
    )


async def a_store(dsn: str, user_id: UUID, grant: TokenGrant, profile: Profile, context: ssl.SSLContext) -> None:
    async with ConnectionStore.open(dsn, timeout=2, max_size=3, ssl=context) as store:
        assert_type(store, ConnectionStore)
        assert_type(await store.get(user_id), Connection)
        assert_type(await store.save(user_id, grant, profile), Connection)
        await store.check_save(user_id, connected_at=grant.expires_at)
        assert_type(await store.delete(user_id), bool)
        async with store.as_user(user_id) as sql:
            assert_type(sql, PoolConnectionProxy[asyncpg.Record])
        await store.save(user_id, grant)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        await store.save(user_id, profile, grant)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ConnectionStore(dsn)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_refresh(store: ConnectionStore, user_id: UUID, seen: str, grant: TokenGrant) -> None:
    turn = await store.begin_refresh(user_id, seen=seen)
    assert_type(turn, RefreshTurn)
    assert_type(turn.connection, Connection | None)
    assert_type(await store.finish_refresh(turn, grant), Connection | None)
    assert_type(await store.fail_refresh(turn, RefreshFailure(reason="refused")), RecordedFailure | None)
    RefreshFailure(reason="tired")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await store.fail_refresh(turn, "expired")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def values(connection: Connection, user_id: UUID, ends: datetime) -> None:
    assert_type(connection.scope, frozenset[str] | None)
    assert_type(connection.reauthorize_by, datetime | None)
    TokenGrant(access_token="a", expires_at=ends)
    TokenGrant(access_token="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    TokenGrant("a", expires_at=ends)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Profile(spotify_user_id=user_id)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connection.acess_token = "a"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


class WithoutColumns:
    def encrypt(self, token: str, *, user_id: UUID) -> str:
        return f"{user_id}{token}"

    def decrypt(self, stored: str, *, user_id: UUID) -> str:
        return stored.removeprefix(str(user_id))


def a_cipher(pool: asyncpg.Pool, key: str) -> TokenCipher:
    cipher = AesGcmSivCipher([key])
    ConnectionStore(pool, cipher=cipher)
    ConnectionStore(pool, cipher=WithoutColumns())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return cipher


async def a_flow(store: ConnectionStore, accounts: SpotifyAccounts, user_id: UUID) -> None:
    flow = ConnectFlow(store, accounts, redirect_uri="https://example.com/callback", scopes=())
    assert_type(await flow.start(user_id, show_dialog=True), str)
    assert_type(await flow.finish(user_id, "https://example.com/callback"), Connection)
    assert_type(await flow.finish(user_id, httpx.URL("https://example.com/callback")), Connection)
    assert_type(await flow.finish(user_id, URL("https://example.com/callback")), Connection)
    await flow.finish(user_id, b"https://example.com/callback")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with flow as entered:
        assert_type(entered, ConnectFlow)
    ConnectFlow(store, accounts, scopes=())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await flow.finish("https://example.com/callback")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def an_admin(dsn: str, cipher: AesGcmSivCipher) -> None:
    async with ConnectionAdmin.open(dsn, cipher=cipher) as admin:
        assert_type(admin, ConnectionAdmin)
        assert_type(admin.expiring(within=timedelta(days=30)), AsyncIterator[ConnectionOverview])
        assert_type(await admin.rekey(), RekeyProgress)
        assert_type(await admin.stats(), ConnectionStats)
        assert_type(await admin.move("a user", "another"), bool)
        async for overview in admin.failing():
            assert_type(overview.user_id, UUID)
            overview.access_token = "a"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        admin.expiring(within=30)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def errors(error: ReauthorizationRequired | ConnectFailed | TryLater, since: datetime) -> None:
    match error:
        case ReauthorizationRequired():
            assert_type(error.reason, Literal["expired", "revoked", "invalid", "other_app"])
            assert_type(error.since, datetime)
        case ConnectFailed():
            assert_type(
                error.reason,
                Literal[
                    "denied",
                    "state_mismatch",
                    "state_used",
                    "state_expired",
                    "code_rejected",
                    "not_allowed",
                    "other_account",
                ],
            )
        case TryLater():
            assert_type(error.retry_after, float | None)
        case _:
            assert_never(error)
    assert_type(error.retryable, bool)
    ReauthorizationRequired("tired", since)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_hook(event: events.Event) -> None:
    match event:
        case events.Refreshed():
            assert_type(event.duration, float)
        case events.RefreshFailed():
            assert_type(event.retry_after, float | None)
        case events.ReauthorizationRequired() | events.Recovered() | events.Connected() | events.Disconnected():
            assert_type(event.user_id, UUID)
        case events.ConnectionRestored():
            assert_type(event.client_id, str | None)
        case events.AppRefused() | events.AppAccepted():
            assert_type(event.client_id, str | None)
            assert_type(event.user_id, UUID | None)
        case _:
            assert_never(event)


def a_hook_of_another_kind(name: str) -> None:
    assert name


def hooks(store: ConnectionStore, accounts: SpotifyAccounts) -> None:
    TokenManager(store, accounts, on_event=a_hook)
    TokenManager(store, accounts, on_event=a_hook_of_another_kind)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def the_test_kit(clock: FakeClock) -> None:
    spotify = FakeSpotify(clock=clock)
    assert_type(spotify.add_account("alice"), FakeAccount)
    assert_type(spotify.authorize("alice", ["user-read-email"]), TokenGrant)
    assert_type(spotify.script(Answer.unavailable(), Answer.reset()), None)
    assert_type(spotify.refresh_calls, int)
    async with spotify.serve() as url:
        assert_type(url, str)
    with spotify.hold(calls=1) as held, EmbeddedPostgres() as server:
        assert_type(held, Hold)
        assert_type(server, EmbeddedPostgres)
        assert_type(await add_user(server.dsn()), UUID)
    assert_type(clock(), float)
    spotify.script("503")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    clock.step(timedelta(hours=1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FakeClock()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def who_asks(request: Request) -> UUID | None:
    return UUID(request.headers["x-user"])


def no_coroutine(_request: Request) -> UUID | None:
    return None


async def the_routes(app: FastAPI, tokens: TokenManager, flow: ConnectFlow) -> None:
    routes = SpotifyRoutes(tokens=tokens, flow=flow, user=who_asks, after="/me")
    app.mount("/spotify", routes)
    app.add_exception_handler(SpotconnError, problem_details)
    FastAPI(responses=PROBLEM_RESPONSES)
    SpotifyRoutes(tokens=lambda request: request.state.tokens, flow=lambda _: flow, user=who_asks, after="/me")
    SpotifyRoutes(tokens=flow, flow=flow, user=who_asks, after="/me")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SpotifyRoutes(tokens=tokens, flow=flow, user=no_coroutine, after="/me")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
