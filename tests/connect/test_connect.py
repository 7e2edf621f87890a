"""The way of a user to a stored connection: what saves one, and everything that must not."""

import asyncio
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import (
    ConfigurationError,
    ConnectFailed,
    ConnectFlow,
    ConnectionStore,
    DatabaseUnavailable,
    SpotifyAccounts,
    SpotifyUnavailable,
    UnknownUser,
)
from spotconn.events import Connected, Event
from spotconn.testing import Answer, FakeSpotify
from support.connections import rows
from support.consent import REDIRECT_URI, SCOPES, agree, altered, pending, refused, state_of
from support.database import Database

WRONG_STATE = "wrong"


async def test_a_user_connects(flow: ConnectFlow, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID) -> None:
    """What is saved is what Spotify granted, and nothing of the attempt stays behind."""
    connection = await flow.finish(user, await agree(await flow.start(user)))
    (row,) = await rows(admin)
    assert (row["user_id"], row["spotify_user_id"], row["display_name"]) == (user, "alice", "Alice")
    assert (row["email"], row["scope"]) == ("alice@example.com", " ".join(SCOPES))
    assert spotify.accepts(row["access_token"])
    assert spotify.accepts_refresh(row["refresh_token"])
    assert (connection.access_token, connection.expires_at) == (row["access_token"], row["expires_at"])
    assert await pending(admin) == 0


async def test_a_public_client_connects(store: ConnectionStore, user: UUID, admin: asyncpg.Connection) -> None:
    """Without a client secret PKCE is the proof."""
    spotify = FakeSpotify(client_secret=None)
    spotify.add_account("alice")
    async with spotify.serve() as url, SpotifyAccounts("demo-client", accounts_url=url, api_url=url) as accounts:
        flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=())
        await flow.finish(user, await agree(await flow.start(user)))
    assert [row["spotify_user_id"] for row in await rows(admin)] == ["alice"]


async def test_the_url_asks_for_what_was_configured(flow: ConnectFlow, user: UUID) -> None:
    """Scopes, redirect URI, PKCE and show_dialog are in the URL; two starts share neither state nor challenge."""
    first, second = [parse_qs(urlsplit(await flow.start(user, show_dialog=again)).query) for again in (False, True)]
    assert first["scope"] == [" ".join(SCOPES)]
    assert first["redirect_uri"] == [REDIRECT_URI]
    assert first["code_challenge_method"] == ["S256"]
    assert (first["show_dialog"], second["show_dialog"]) == (["false"], ["true"])
    assert first["state"] != second["state"]
    assert first["code_challenge"] != second["code_challenge"]
    assert len(first["state"][0]) >= 43


async def test_a_replayed_callback_is_refused(
    flow: ConnectFlow, admin: asyncpg.Connection, user: UUID, spotify: FakeSpotify
) -> None:
    """A callback works once; the second time Spotify is not even asked."""
    callback = await agree(await flow.start(user))
    await flow.finish(user, callback)
    saved, calls = await rows(admin), spotify.token_calls
    assert await refused(flow, user, callback) == "state_used"
    assert (await rows(admin), spotify.token_calls) == (saved, calls)


async def test_a_callback_that_is_fetched_twice_has_one_result(
    flow: ConnectFlow, admin: asyncpg.Connection, user: UUID, spotify: FakeSpotify
) -> None:
    """Of four calls at the same moment one asks Spotify, and all have what it gave."""
    callback = await agree(await flow.start(user))
    done = await asyncio.gather(*(flow.finish(user, callback) for _ in range(4)))
    assert {connection.access_token for connection in done} == {row["access_token"] for row in await rows(admin)}
    assert spotify.token_calls == 1


async def test_a_callback_in_another_users_session_is_refused(
    flow: ConnectFlow, admin: asyncpg.Connection, users: list[UUID], before: list[asyncpg.Record], spotify: FakeSpotify
) -> None:
    """An attacker who lures a victim to a callback with the attacker's own code changes nothing (login CSRF)."""
    attacker, victim, newcomer = users
    callback = await agree(await flow.start(attacker))
    assert await refused(flow, victim, callback) == "state_mismatch"
    assert await refused(flow, newcomer, callback) == "state_mismatch"
    assert await rows(admin) == before
    assert spotify.token_calls == 0
    assert (await flow.finish(attacker, callback)).spotify_user_id == "alice"  # it was not spent by the others


async def test_the_victims_state_with_the_attackers_code_is_refused(
    flow: ConnectFlow, admin: asyncpg.Connection, users: list[UUID], before: list[asyncpg.Record]
) -> None:
    """A code obtained with another verifier does not fit (RFC 7636), so an injected code connects nothing."""
    injected = parse_qs(urlsplit(await agree(await flow.start(users[0]))).query)["code"][0]
    callback = await agree(await flow.start(users[1]))
    assert await refused(flow, users[1], altered(callback, code=injected)) == "code_rejected"
    assert await rows(admin) == before


@pytest.mark.parametrize("seconds", [0, 1, 3600])
async def test_an_expired_callback_is_refused(
    flow: ConnectFlow, admin: asyncpg.Connection, user: UUID, before: list[asyncpg.Record], seconds: int
) -> None:
    """After ten minutes, by the database's clock, the state no longer counts."""
    callback = await agree(await flow.start(user))
    await admin.execute(
        "update spotconn.pending_connect set expires_at = now() - make_interval(secs => $1)", float(seconds)
    )
    assert await refused(flow, user, callback) == "state_expired"
    assert await rows(admin) == before
    assert await pending(admin) == 0


TAMPERED: list[Callable[[str], str]] = [
    lambda url: altered(url, state=WRONG_STATE),
    lambda url: altered(url, state=""),
    lambda url: altered(url, state=state_of(url) + "x"),
    lambda url: altered(url, state=state_of(url)[:-1]),
    lambda url: altered(url, state=f"{'f' * 400}.x"),
    lambda url: url + "&state=" + state_of(url),
    lambda url: url + "&code=other",
    lambda url: altered(url, error="access_denied", state=WRONG_STATE),
    lambda url: url.partition("?")[0],
    lambda url: url.replace("?", "#"),
    lambda _url: "http://[",
    lambda _url: "http://127.0.0.1/callback?state=\x00&code=x",
    lambda _url: "http://127.0.0.1/callback?state=\ud800&code=x",
    lambda _url: "/callback?" + "&".join(f"a{n}=b" for n in range(1000)),
]


@pytest.mark.parametrize("tamper", TAMPERED)
async def test_a_tampered_callback_is_refused(
    flow: ConnectFlow,
    admin: asyncpg.Connection,
    user: UUID,
    before: list[asyncpg.Record],
    spotify: FakeSpotify,
    tamper: Callable[[str], str],
) -> None:
    """A state that is altered, missing or given twice fits nothing, and Spotify is not asked."""
    callback = await agree(await flow.start(user))
    assert await refused(flow, user, tamper(callback)) == "state_mismatch"
    assert await rows(admin) == before
    assert spotify.token_calls == 0


@pytest.mark.parametrize("changes", [{"code": "altered"}, {"code": ""}])
async def test_a_code_that_spotify_refuses_is_no_refusal_of_the_connection(
    flow: ConnectFlow,
    store: ConnectionStore,
    admin: asyncpg.Connection,
    user: UUID,
    before: list[asyncpg.Record],
    changes: dict[str, str],
) -> None:
    """A rejected code says nothing about what is stored: it stays, without any recorded failure."""
    callback = await agree(await flow.start(user))
    assert await refused(flow, user, altered(callback, **changes)) == "code_rejected"
    assert await rows(admin) == before
    assert (await store.get(user)).failure is None


async def test_a_user_who_says_no_keeps_the_old_connection(
    flow: ConnectFlow, admin: asyncpg.Connection, user: UUID, before: list[asyncpg.Record], spotify: FakeSpotify
) -> None:
    """Cancel at Spotify is a reason of its own, and it spends the state."""
    callback = await agree(await flow.start(user), decision="cancel")
    assert await refused(flow, user, callback) == "denied"
    assert await rows(admin) == before
    assert (await pending(admin), spotify.token_calls) == (0, 0)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        ("server_error", SpotifyUnavailable),
        ("temporarily_unavailable", SpotifyUnavailable),
        ("invalid_scope", ConfigurationError),
        ("marked words", ConnectFailed),
    ],
)
async def test_other_errors_in_a_callback_have_their_meaning(
    flow: ConnectFlow,
    admin: asyncpg.Connection,
    user: UUID,
    before: list[asyncpg.Record],
    error: str,
    raised: type[Exception],
) -> None:
    """What RFC 6749, section 4.1.2.1, defines is sorted; what anybody may have written is not repeated."""
    callback = altered(await agree(await flow.start(user)), error=error)
    with pytest.raises(raised) as failure:
        await flow.finish(user, callback)
    assert "marked" not in str(failure.value)
    assert await rows(admin) == before


async def test_two_tabs_at_once_each_finish(
    flow: ConnectFlow, admin: asyncpg.Connection, user: UUID, spotify: FakeSpotify
) -> None:
    """Both attempts of one user are good, at the same moment too; one row stays, whole."""
    first, second = await flow.start(user), await flow.start(user)
    await asyncio.gather(
        flow.finish(user, await agree(first, "alice")),
        flow.finish(user, await agree(second, "bob")),
    )
    (row,) = await rows(admin)
    token_of = {"alice": "Alice", "bob": "Bob"}
    assert row["display_name"] == token_of[row["spotify_user_id"]]
    assert spotify.accepts(row["access_token"])


@pytest.mark.parametrize("answer", [Answer.too_many_requests("0"), Answer.unavailable(502), Answer.unavailable()])
async def test_an_exchange_that_was_not_processed_is_tried_again(
    flow: ConnectFlow, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID, answer: Answer
) -> None:
    """429 and 5xx have not spent the code."""
    callback = await agree(await flow.start(user))
    spotify.script(answer, answer)
    await flow.finish(user, callback)
    assert len(await rows(admin)) == 1


async def test_a_grant_without_what_is_needed_is_not_saved(
    flow: ConnectFlow, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID, before: list[asyncpg.Record]
) -> None:
    """No refresh token: nothing to keep. No scope: it is the one asked for (RFC 6749, section 5.1)."""
    grant = {"access_token": "BQa", "token_type": "Bearer", "expires_in": 3600}
    callback = await agree(await flow.start(user))
    spotify.script(Answer(json=grant))
    with pytest.raises(SpotifyUnavailable, match="refresh token"):
        await flow.finish(user, callback)
    assert await rows(admin) == before

    for scopes in (SCOPES, ["streaming"]):
        callback = await agree(await flow.start(user, scopes=None if scopes is SCOPES else scopes))
        access_token = spotify.authorize("alice").access_token
        spotify.script(Answer(json=grant | {"access_token": access_token, "refresh_token": "AQa"}))
        assert (await flow.finish(user, callback)).scope == frozenset(scopes)


async def test_a_connect_is_reported(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """The hook gets one event per connection and none for a failure."""
    emitted: list[Event] = []
    spotify.add_account("alice")
    flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=(), on_event=emitted.append)
    assert await refused(flow, user, await agree(await flow.start(user), decision="cancel")) == "denied"
    await flow.finish(user, await agree(await flow.start(user)))
    await flow.aclose()
    assert emitted == [Connected(user_id=user, client_id="demo-client", spotify_user_id="alice")]


async def test_a_user_that_does_not_exist_is_named(
    flow: ConnectFlow, admin: asyncpg.Connection, user: UUID, spotify: FakeSpotify
) -> None:
    """A user id that is none is a ValueError, one of nobody has an error of its own; one deleted meanwhile spends no
    code.
    """
    with pytest.raises(ValueError, match="user_id"):
        await flow.start("no-uuid")
    with pytest.raises(UnknownUser):
        await flow.start(uuid4())
    callback = await agree(await flow.start(user))
    await admin.execute("delete from auth.users where id = $1", user)
    assert await pending(admin) == 0
    assert await refused(flow, user, callback) == "state_mismatch"
    assert spotify.token_calls == 0


async def test_a_database_that_is_away_starts_nothing(
    database: Database, accounts: SpotifyAccounts, user: UUID
) -> None:
    """Without the database there is no URL to send anybody to."""
    async with ConnectionStore.open(database.dsn) as store:
        flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=())
        await store.pool._pool.close()
        with pytest.raises(DatabaseUnavailable):
            await flow.start(user)
