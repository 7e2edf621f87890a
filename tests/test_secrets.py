"""No token, secret or password shows in anything that the library emits."""

import copy
import logging
import pickle
import traceback
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import asyncpg
import pytest

from conftest import Database
from helpers import agree, connect
from spotconn import (
    ConnectFlow,
    ConnectionStore,
    Profile,
    RefreshFailure,
    SpotconnError,
    SpotifyAccounts,
    TokenGrant,
    TokenManager,
)
from spotconn._redirect import read_callback
from spotconn.testing import Answer, FakeSpotify

CLIENT_SECRET = "demo-secret"
PASSWORD = "app"


def _everything_said(error: BaseException) -> str:
    """An error with all it is chained to, as a log would show it, and its attributes and pickle."""
    seen = "".join(traceback.format_exception(error))
    return f"{seen}{error!r}{vars(error)!r}{pickle.dumps(copy.copy(error))!r}"


class Witness:
    """Collects what is emitted, and the secrets that must not be in it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.secrets: set[str] = {CLIENT_SECRET}

    async def fails(self, call: Awaitable[object]) -> None:
        with pytest.raises((SpotconnError, ValueError)) as raised:
            await call
        self.said.append(_everything_said(raised.value))

    def knows(self, *grants: TokenGrant) -> None:
        for grant in grants:
            self.secrets |= {grant.access_token, grant.refresh_token or grant.access_token}

    def check(self, log: str) -> None:
        said = log + "".join(self.said)
        assert len(said) > 1000, "nothing was collected"
        assert self.secrets
        leaked = [secret for secret in self.secrets if secret in said]
        assert not leaked


async def test_no_secret_is_emitted_by_the_manager(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Successes and failures of every call, with all loggers at DEBUG, show no token and no secret."""
    caplog.set_level(logging.DEBUG)
    witness, user = Witness(), users[0]
    async with TokenManager(store, accounts, refresh_timeout=0.3, lease=1, cache_ttl=0) as tokens:
        stored = await connect(store, spotify, user, ttl=-1)
        witness.secrets |= {stored.access_token, stored.refresh_token}
        token = await tokens.get_valid_token(user)
        witness.secrets |= {token, await tokens.replace_rejected(user, token)}
        witness.secrets.add((await store.get(user)).refresh_token)
        for answer in (Answer.truncated(), Answer.unavailable(), Answer.reset(), Answer(body=b"<html>")):
            stored = await connect(store, spotify, user, ttl=-1)
            witness.secrets |= {stored.access_token, stored.refresh_token}
            spotify.script(*[answer] * 30)
            await witness.fails(tokens.get_valid_token(user))
            spotify._script.clear()
        stored = await connect(store, spotify, user, ttl=-1)
        witness.secrets |= {stored.access_token, stored.refresh_token}
        spotify.revoke("alice")
        await witness.fails(tokens.get_valid_token(user))
        await witness.fails(tokens.get_valid_token(users[1]))
        await witness.fails(tokens.get_valid_token(stored.access_token))
        await witness.fails(tokens.get_valid_token(user, scopes=["never-granted"]))
        turn = await store.begin_refresh(users[2], seen=stored.expires_at)
        witness.said += [repr(thing) for thing in (await tokens.status(user), stored, turn, tokens, accounts, store)]
    witness.check(caplog.text)


async def test_no_secret_is_emitted_by_failing_statements(
    database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """A statement that fails on a row or an argument does not repeat it."""
    witness = Witness()
    spotify.add_account("alice")
    grant = spotify.authorize("alice")
    witness.knows(grant)
    profile = Profile(spotify_user_id="alice")
    await admin.execute(
        "alter table public.spotify_connections add constraint no_alice check (spotify_user_id <> 'alice')"
    )
    try:
        await witness.fails(store.save(user, grant, profile))
    finally:
        await admin.execute("alter table public.spotify_connections drop constraint no_alice")
    await witness.fails(
        store.save(user, grant.model_copy(update={"access_token": "BQ\x00" + grant.access_token}), profile)
    )
    stored = await store.save(user, grant, profile)
    turn = await store.begin_refresh(user, seen=stored.expires_at)
    witness.said.append(repr(turn))
    await store.fail_refresh(turn, RefreshFailure())
    await witness.fails(_opening(database.dsn.replace(":app@", ":wrong-password@")))
    witness.secrets.add("wrong-password")
    witness.check("")


async def _opening(dsn: str) -> None:
    async with ConnectionStore.open(dsn):
        pass


async def test_no_secret_is_emitted_by_the_connect_flow(
    flow: ConnectFlow,
    spotify: FakeSpotify,
    user: UUID,
    admin: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Connects that succeed and fail in every way show no state, code, verifier or token."""
    witness = Witness()
    spotify.add_account("refused", refusal="User not registered in the Developer Dashboard")
    callbacks = [await agree(await flow.start(user), account) for account in ("alice", "alice", "refused", "alice")]
    callbacks.append(await agree(await flow.start(user), decision="cancel"))
    for callback in callbacks:
        witness.secrets |= {
            callback,
            *(value for name, value in parse_qsl(urlsplit(callback).query) if name != "error"),
        }
    witness.secrets |= {row["code_verifier"] for row in await admin.fetch("select * from spotconn.pending_connect")}
    assert len(witness.secrets) == 1 + 5 + 5 + 4 + 5

    caplog.set_level(logging.DEBUG)
    connected, rejected, refused, cut, denied = callbacks
    connection = await flow.finish(user, connected)
    witness.knows(TokenGrant.model_validate(connection.model_dump(include=set(TokenGrant.model_fields))))
    witness.said += [repr(thing) for thing in (connection, flow, flow._store.pending, read_callback(connected))]
    for callback in (connected, denied, refused, f"{rejected}x", "http://[" + connected):
        await witness.fails(flow.finish(user, callback))
    spotify.script(Answer(status=400, json={"error": "invalid_grant", "error_description": rejected}))
    await witness.fails(flow.finish(user, rejected))
    spotify.script(Answer.reset())
    await witness.fails(flow.finish(user, cut))
    await witness.fails(flow.start(f"no-uuid-{connected}"))
    witness.check(caplog.text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenGrant(access_token="marked\nsecret", expires_at="marked secret"),  # type: ignore[arg-type]
        lambda: TokenGrant.model_validate({"access_token": ["marked secret"]}),
        lambda: SpotifyAccounts("client", " marked secret"),
        lambda: SpotifyAccounts("client", accounts_url="http://marked secret"),
    ],
)
def test_a_refused_value_is_not_repeated(make: Callable[[], object]) -> None:
    """A value that is refused where it is given is named and not shown."""
    with pytest.raises((ValueError, SpotconnError)) as raised:
        make()
    assert "marked" not in "".join(traceback.format_exception_only(raised.value))
