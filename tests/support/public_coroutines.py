"""Every public coroutine of the classes that hold connections, with arguments that would change or cost something."""

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx

from spotconn import (
    Completed,
    ConnectFlow,
    Connection,
    ConnectionAdmin,
    ConnectionStore,
    Outcome,
    Profile,
    RefreshFailure,
    RefreshTurn,
    SpotifyAccounts,
    TokenGrant,
    TokenManager,
)
from spotconn.models import StoredTexts, fingerprint
from support.consent import REDIRECT_URI

CLASSES = (TokenManager, ConnectionStore, ConnectionAdmin, SpotifyAccounts, ConnectFlow)
CLOSING = {"TokenManager.aclose", "SpotifyAccounts.aclose", "ConnectFlow.aclose"}
PAST = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Objects:
    """One of each class.

    Attributes:
        user: whose stored token has expired, and who is not cached.
        callback: of an authorization of that user that is under way.
    """

    tokens: TokenManager
    store: ConnectionStore
    admin: ConnectionAdmin
    accounts: SpotifyAccounts
    flow: ConnectFlow
    user: UUID
    callback: str

    @property
    def grant(self) -> TokenGrant:
        ends = datetime.now(UTC) + timedelta(hours=1)
        return TokenGrant(access_token="other-access", refresh_token="other-refresh", expires_at=ends)

    @property
    def completed(self) -> Completed:
        return Completed(grant=self.grant, profile=Profile(spotify_user_id="alice"))

    @property
    def turn(self) -> RefreshTurn:
        stored = Connection(
            id=uuid4(),
            user_id=self.user,
            spotify_user_id="alice",
            access_token="old-access",
            refresh_token="old-refresh",
            expires_at=PAST,
            connected_at=PAST,
            scope=None,
            display_name=None,
            email=None,
            failure=None,
            remaining=-1,
            texts=StoredTexts("old-access", "old-refresh"),
        )
        return RefreshTurn(
            outcome=Outcome.GRANTED,
            user_id=self.user,
            connection=stored,
            lease_id=uuid4(),
            lease_until=PAST,
            retry_after=None,
        )


async def _first(items: AsyncIterable[object]) -> object:
    return await anext(aiter(items), None)


async def _act(objects: Objects) -> object:
    async with objects.store.as_user(objects.user) as connection:
        return await connection.fetchval("select 1")


async def _many(objects: Objects) -> object:
    return await _first(objects.tokens.get_valid_tokens([objects.user]))


async def _auth(objects: Objects) -> object:
    request = httpx.Request("GET", f"{objects.accounts.api_url}/v1/me")
    return await _first(objects.tokens.auth(objects.user).async_auth_flow(request))


Call = Callable[[Objects], Awaitable[object]]
CALLS: dict[str, Call] = {
    "TokenManager.get_valid_token": lambda on: on.tokens.get_valid_token(on.user),
    "TokenManager.get_access_token": lambda on: on.tokens.get_access_token(on.user),
    "TokenManager.get_valid_tokens": _many,
    "TokenManager.replace_rejected": lambda on: on.tokens.replace_rejected(on.user, "rejected"),
    "TokenManager.auth": _auth,
    "TokenManager.status": lambda on: on.tokens.status(on.user),
    "TokenManager.check": lambda on: on.tokens.check(),
    "TokenManager.disconnect": lambda on: on.tokens.disconnect(on.user),
    "ConnectionStore.verify": lambda on: on.store.verify(),
    "ConnectionStore.get": lambda on: on.store.get(on.user),
    "ConnectionStore.get_many": lambda on: on.store.get_many([on.user]),
    "ConnectionStore.save": lambda on: on.store.save(on.user, on.grant, Profile(spotify_user_id="alice")),
    "ConnectionStore.check_save": lambda on: on.store.check_save(on.user, connected_at=PAST),
    "ConnectionStore.delete": lambda on: on.store.delete(on.user),
    "ConnectionStore.begin_refresh": lambda on: on.store.begin_refresh(on.user, seen=fingerprint("old-access")),
    "ConnectionStore.finish_refresh": lambda on: on.store.finish_refresh(on.turn, on.grant),
    "ConnectionStore.fail_refresh": lambda on: on.store.fail_refresh(on.turn, RefreshFailure(reason="refused")),
    "ConnectionStore.as_user": _act,
    "ConnectionAdmin.expiring": lambda on: _first(on.admin.expiring(within=timedelta(days=365))),
    "ConnectionAdmin.failing": lambda on: _first(on.admin.failing()),
    "ConnectionAdmin.mark_asked": lambda on: on.admin.mark_asked([on.user]),
    "ConnectionAdmin.stats": lambda on: on.admin.stats(),
    "ConnectionAdmin.rekey": lambda on: on.admin.rekey(),
    "ConnectionAdmin.move": lambda on: on.admin.move(on.user, UUID(int=1)),
    "ConnectionAdmin.recheck": lambda on: on.admin.recheck(since=PAST),
    "ConnectionAdmin.prune": lambda on: on.admin.prune(dead_for=timedelta()),
    "ConnectionAdmin.migrate": lambda on: _first(on.admin.migrate("nowhere")),
    "ConnectionAdmin.assign_app": lambda on: on.admin.assign_app("an-app"),
    "SpotifyAccounts.refresh": lambda on: on.accounts.refresh("a-token"),
    "SpotifyAccounts.exchange_code": lambda on: on.accounts.exchange_code(
        "a-code", redirect_uri=REDIRECT_URI, code_verifier="v" * 43
    ),
    "SpotifyAccounts.profile": lambda on: on.accounts.profile("a-token"),
    "ConnectFlow.start": lambda on: on.flow.start(on.user),
    "ConnectFlow.finish": lambda on: on.flow.finish(on.user, on.callback),
    "ConnectFlow.begin": lambda on: on.flow.begin(None),
    "ConnectFlow.complete": lambda on: on.flow.complete(on.callback, None),
    "ConnectFlow.complete_unbound": lambda on: on.flow.complete_unbound(on.callback),
    "ConnectFlow.save": lambda on: on.flow.save(on.user, on.completed),
}


def public_coroutines() -> set[str]:
    """Name all methods that suspend, also those that return an async iterator or a context manager."""
    return {
        f"{cls.__name__}.{name}"
        for cls in CLASSES
        for name, value in vars(cls).items()
        if not name.startswith("_") and inspect.isfunction(value) and _suspends(value)
    }


async def answers(objects: Objects) -> dict[str, str]:
    """Make every call, and say what came of it."""
    return {name: await outcome(call(objects)) for name, call in CALLS.items()}


async def outcome(call: Awaitable[object]) -> str:
    """Say what comes of a call: the type of what it returns, or the error."""
    try:
        return f"returned {type(await call).__name__}"
    except Exception as error:  # noqa: BLE001  whatever it is, it is looked at
        return f"{type(error).__name__}: {error}"


def _suspends(value: Callable[..., Any]) -> bool:
    inner = inspect.unwrap(value)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        return True
    return any(word in str(inspect.signature(inner).return_annotation) for word in ("Async", "SpotifyAuth"))
