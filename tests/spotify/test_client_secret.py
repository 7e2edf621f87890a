"""A client secret that is read again: what follows its rotation at Spotify, in each order that there can be."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast
from uuid import UUID

import asyncpg
import pytest
from pydantic import SecretStr

from spotconn import ConfigurationError, ConnectFlow, ConnectionStore, SpotifyAccounts, TokenManager, events
from spotconn._spotify import client_secret
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.consent import REDIRECT_URI, agree
from support.database import Database
from support.listening import until


class Source:
    """A secret that can be read, and how often it was."""

    def __init__(self, *secrets: str) -> None:
        self.secrets = list(secrets)
        self.reads = 0

    def __call__(self) -> str:
        """Return the next secret; the last one again and again."""
        self.reads += 1
        return self.secrets.pop(0) if len(self.secrets) > 1 else self.secrets[0]


class HeldSource(Source):
    """Returns from its second reading on only when it may."""

    def __init__(self, *secrets: str) -> None:
        super().__init__(*secrets)
        self.entered, self.may_return = threading.Event(), threading.Event()

    def __call__(self) -> str:
        """Return the next secret, once that is allowed."""
        secret = super().__call__()
        if self.reads > 1:
            self.entered.set()
            assert self.may_return.wait(30)
        return secret


@pytest.fixture
async def url(spotify: FakeSpotify) -> AsyncIterator[str]:
    """Where Spotify answers; two users have connected."""
    for name in ("alice", "bob"):
        spotify.add_account(name)
    async with spotify.serve() as served:
        yield served


def accounts_of(url: str, source: Source) -> SpotifyAccounts:
    return SpotifyAccounts("demo-client", source, accounts_url=url, api_url=url)


def tokens_of(spotify: FakeSpotify, count: int) -> list[str]:
    """The refresh tokens of so many consents."""
    return [str(spotify.authorize("alice").refresh_token) for _ in range(count)]


async def test_another_secret_is_used_at_once(url: str, spotify: FakeSpotify) -> None:
    """The call that Spotify refuses is made again with the secret that stands there by then; nothing else is read."""
    source = Source("demo-secret", "other")
    async with accounts_of(url, source) as accounts:
        assert repr(accounts) == "<SpotifyAccounts client_id='demo-client' confidential>"
        first, second, third = tokens_of(spotify, 3)
        await accounts.refresh(first)
        spotify.rotate_secret("other")
        await accounts.refresh(second)
        await accounts.refresh(third)
    assert (source.reads, spotify.token_calls) == (2, 4)


async def test_the_same_secret_is_refused_as_one_that_is_no_function(
    url: str, spotify: FakeSpotify, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent once. While the pause lasts nothing is sent, and it is not read again sooner either."""
    monkeypatch.setattr(client_secret, "REREAD_INTERVAL", 3600.0)
    spotify.rotate_secret("other")
    source = Source("demo-secret")
    async with accounts_of(url, source) as accounts:
        (token,) = tokens_of(spotify, 1)
        for _ in range(3):
            with pytest.raises(ConfigurationError, match="refuses the credentials of the app demo-client"):
                await accounts.refresh(token)
    assert (source.reads, spotify.token_calls) == (2, 1)


async def test_calls_that_are_refused_together_share_one_reading(url: str, spotify: FakeSpotify) -> None:
    """All of them are under way when the secret is rotated; each is granted then, and no pause is left."""
    source = Source("demo-secret", "other")
    async with accounts_of(url, source) as accounts:
        with spotify.hold(before=True):
            calls = [asyncio.create_task(accounts.refresh(token)) for token in tokens_of(spotify, 20)]
            await until(lambda: spotify.token_calls == 20)
            spotify.rotate_secret("other")
        await asyncio.gather(*calls)
        assert not accounts._admission.is_refused
    assert (source.reads, spotify.token_calls) == (2, 40)


async def test_a_refusal_that_comes_late_is_about_the_former_secret(url: str, spotify: FakeSpotify) -> None:
    """A call that was sent with it is made again with the one that another call has read; that is read no more."""
    source = Source("demo-secret", "other")
    async with accounts_of(url, source) as accounts:
        early, late = tokens_of(spotify, 2)
        with spotify.hold(before=True, calls=1) as hold:
            held = asyncio.create_task(accounts.refresh(late))
            await hold.reached()
            spotify.rotate_secret("other")
            await accounts.refresh(early)
        await held
        assert not accounts._admission.is_refused
    assert source.reads == 2


async def test_a_reading_that_began_too_early_does_not_count(url: str, spotify: FakeSpotify) -> None:
    """It may have seen the former secret: a call that was sent after it began has another one made."""
    source = HeldSource("demo-secret", "demo-secret", "other")
    spotify.rotate_secret("other")
    async with accounts_of(url, source) as accounts:
        early, late = tokens_of(spotify, 2)
        first = asyncio.create_task(accounts.refresh(early))
        assert await asyncio.to_thread(source.entered.wait, 30)
        second = asyncio.create_task(accounts.refresh(late))
        source.may_return.set()
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(outcomes[0], ConfigurationError)
    assert not isinstance(outcomes[1], BaseException)
    assert source.reads == 3


async def test_a_caller_that_is_cancelled_takes_no_reading_from_others(url: str, spotify: FakeSpotify) -> None:
    """The reading is nobody's: it goes on, and serves who waits for it."""
    source = HeldSource("demo-secret", "other")
    async with accounts_of(url, source) as accounts:
        tokens = tokens_of(spotify, 3)
        await accounts.refresh(tokens.pop())
        spotify.rotate_secret("other")
        calls = [asyncio.create_task(accounts.refresh(token)) for token in tokens]
        assert await asyncio.to_thread(source.entered.wait, 30)
        await until(lambda: spotify.token_calls == 3)
        calls[0].cancel()
        source.may_return.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert not isinstance(outcomes[1], BaseException)
    assert source.reads == 2


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "hush\n",
        "hush\udce9",
        None,
        OSError("hush"),
        SystemExit("hush"),
        StopIteration("hush"),
        ConfigurationError("the file is gone"),
    ],
)
async def test_what_cannot_be_read_is_named_and_read_again(
    url: str, spotify: FakeSpotify, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: object
) -> None:
    """At the first use it is a ConfigurationError without any text of others; later the last secret stays in use."""
    monkeypatch.setattr(client_secret, "REREAD_INTERVAL", 0.0)
    outcomes: list[object] = [wrong, "demo-secret", wrong, "other"]

    def read() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return cast("str", outcome)

    async with SpotifyAccounts("demo-client", read, accounts_url=url, api_url=url) as accounts:
        first, second = tokens_of(spotify, 2)
        with pytest.raises(ConfigurationError, match=r"^client_secret|^the file is gone$") as raised:
            await accounts.refresh(first)
        await accounts.refresh(first)
        spotify.rotate_secret("other")
        with (
            caplog.at_level(logging.INFO, "spotconn"),
            pytest.raises(ConfigurationError, match="refuses the credentials"),
        ):
            await accounts.refresh(second)
        await accounts.refresh(second)
    assert "the last client secret of the app demo-client stays in use" in caplog.text
    assert "hush" not in caplog.text + str(raised.value)


async def test_no_task_shows_what_is_read(url: str, spotify: FakeSpotify) -> None:
    """Tools for debugging show the tasks, and with each the future that it waits for."""
    shown: list[str] = []
    async with accounts_of(url, Source("demo-secret")) as accounts:
        call = asyncio.create_task(accounts.refresh(tokens_of(spotify, 1)[0]))
        while not call.done():
            shown += map(repr, asyncio.all_tasks())
            await asyncio.sleep(0)
    assert "demo-secret" not in "".join(shown)
    assert "ClientSecret._load()" in "".join(shown)


@pytest.mark.parametrize("wrong", [SecretStr("hush"), b"hush", "", "hush\nhush", "hush\udce9"])
def test_what_is_no_secret_makes_no_client(wrong: object) -> None:
    """Neither one that cannot be sent nor, without an error, a public client that leaves the secret out."""
    with pytest.raises(ConfigurationError, match=r"^client_secret is empty, no text, or") as raised:
        SpotifyAccounts("demo-client", cast("str", wrong))
    assert "hush" not in str(raised.value)


async def test_a_reading_that_hangs_holds_up_no_call_for_long(
    url: str, spotify: FakeSpotify, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `READ_TIMEOUT` a call goes on as if the same secret had been read, and later ones do not wait for it."""
    source = HeldSource("demo-secret")
    async with accounts_of(url, source) as accounts:
        first, second = tokens_of(spotify, 2)
        await accounts.refresh(first)
        monkeypatch.setattr(client_secret, "READ_TIMEOUT", 0.05)
        spotify.rotate_secret("other")
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="refuses the credentials"):
                await accounts.refresh(second)
    source.may_return.set()
    assert source.reads == 2


async def test_users_connect_again_once_the_secret_is_right(
    url: str, spotify: FakeSpotify, store: ConnectionStore, users: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connect that is begun while Spotify refuses the app finds the other secret before the user is sent there."""
    monkeypatch.setattr(client_secret, "REREAD_INTERVAL", 0.0)
    source = Source("demo-secret")
    async with accounts_of(url, source) as accounts:
        flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=())
        callbacks = [await agree(await flow.start(user)) for user in users[:2]]
        spotify.rotate_secret("other")
        for user, callback in zip(users, callbacks, strict=False):
            with pytest.raises(ConfigurationError, match="refuses the credentials"):
                await flow.finish(user, callback)
        with pytest.raises(ConfigurationError, match="refuses the credentials"):
            await flow.start(users[0])
        source.secrets = ["other"]
        callback = await agree(await flow.start(users[0]))
        spotify.rotate_secret("third")
        source.secrets = ["third"]
        assert (await flow.finish(users[0], callback)).spotify_user_id == "alice"


async def every_user_is_refused(fleet: list[TokenManager], users: list[UUID]) -> None:
    for tokens in fleet:
        for user in users:
            with pytest.raises(ConfigurationError, match="refuses the credentials"):
                await tokens.get_valid_token(user)


async def test_a_fleet_comes_back_without_a_restart(
    url: str,
    spotify: FakeSpotify,
    database: Database,
    store: ConnectionStore,
    users: list[UUID],
    admin: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes of two apps, both secrets in files: each user has a token at the first call after the files change.

    All pauses that the refusals have begun are over then, and no user is marked.
    """
    monkeypatch.setattr(client_secret, "REREAD_INTERVAL", 0.0)
    files = {"demo-client": tmp_path / "first", "other": tmp_path / "second"}
    for app, file in files.items():
        file.write_text("demo-secret\n")
        spotify.apps._secrets[app] = "demo-secret"
    environ = {
        "DATABASE_URL": database.dsn,
        "SPOTIFY_CLIENT_ID": "demo-client",
        "SPOTIFY_CLIENT_SECRET_FILE": str(files["demo-client"]),
        "SPOTCONN_OTHER_APPS": f"other:{files['other']}",
        "SPOTCONN_SPOTIFY_URL": url,
    }
    for user, app in zip(users, ("demo-client", "other", "demo-client"), strict=True):
        await connect(store, spotify, user, ttl=1, app=app)
    async with AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(TokenManager.from_env(environ=environ)) for _ in range(2)]
        for app in files:
            spotify.rotate_secret("rotated", client_id=app)
        await every_user_is_refused(fleet, users)
        await every_user_is_refused(fleet, users)
        assert await admin.fetchval("select count(*) from spotconn.refresh_state where failure is not null") == 0
        for file in files.values():
            file.with_suffix(".new").write_text("rotated")
            file.with_suffix(".new").replace(file)
        for tokens, user in zip((*fleet, fleet[0]), users, strict=True):
            assert spotify.accepts(await tokens.get_valid_token(user))
        for tokens, user in zip((*reversed(fleet), fleet[1]), users, strict=True):
            assert spotify.accepts(await tokens.get_valid_token(user))


async def test_a_readiness_probe_finds_the_other_secret(
    url: str, spotify: FakeSpotify, store: ConnectionStore, users: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is not ready gets no calls: the probe reads the secret, once a second, and asks Spotify nothing.

    That Spotify refuses the app is told once, and that it accepts it only when it does.
    """
    told: list[str] = []

    async def hook(event: events.Event) -> None:
        if isinstance(event, events.AppRefused | events.AppAccepted):
            told.append(type(event).__name__)

    for user in users:
        await connect(store, spotify, user, ttl=1)
    spotify.rotate_secret("third")
    source = Source("demo-secret")
    async with accounts_of(url, source) as accounts, TokenManager(store, accounts, on_event=hook) as tokens:
        await every_user_is_refused([tokens], users[:2])
        reads, calls = source.reads, spotify.token_calls
        for interval, secret in ((3600.0, "other"), (0.0, "demo-secret")):
            monkeypatch.setattr(client_secret, "REREAD_INTERVAL", interval)
            source.secrets = [secret]
            with pytest.raises(ConfigurationError, match="the app demo-client"):
                await tokens.check()
        assert source.reads == reads + 1
        source.secrets = ["other"]
        await tokens.check()
        await every_user_is_refused([tokens], users[:2])
        assert spotify.token_calls == calls + 2
        source.secrets = ["third"]
        await tokens.check()
        assert spotify.accepts(await tokens.get_valid_token(users[0]))
    assert told == ["AppRefused", "AppAccepted"]
