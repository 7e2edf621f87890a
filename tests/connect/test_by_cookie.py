"""An authorization that a cookie binds to the browser, a sign-in, and one that nothing binds."""

from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectFailed, ConnectFlow, TryLater
from spotconn.testing import FakeSpotify
from support.connections import rows
from support.consent import agree, pending, sent

DATA = {"next": "/profile", "from": "settings"}


async def test_a_browser_that_began_comes_back(
    flow: ConnectFlow, user: UUID, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """Its user is connected, whom no session names, and what was given along comes back."""
    begun = await flow.begin(user, data=DATA)
    done = await flow.complete(await agree(begun.url), sent(begun))
    assert (done.user_id, done.data, done.profile.spotify_user_id) == (user, DATA, "alice")
    assert done.connection is not None
    assert [row["access_token"] for row in await rows(admin)] == [done.connection.access_token]
    assert await pending(admin) == 0


async def test_another_browser_is_refused_and_spends_nothing(
    flow: ConnectFlow, users: list[UUID], spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """Without the cookie, with one of another authorization, with an altered one, and for another user."""
    begun, other = await flow.begin(users[0]), await flow.begin(users[0])
    callback = await agree(begun.url)
    altered = sent(begun).replace("=", "=x")
    for cookie, user in ((None, None), ("", None), (sent(other), None), (altered, None), (sent(begun), users[1])):
        with pytest.raises(ConnectFailed, match="another") as raised:
            await flow.complete(callback, cookie, user_id=user)
        assert raised.value.reason == "state_mismatch"
    assert (await pending(admin), spotify.token_calls, await rows(admin)) == (2, 0, [])
    assert (await flow.complete(callback, sent(other, begun), user_id=users[0])).user_id == users[0]


async def test_a_sign_in_saves_once_the_user_is_known(
    flow: ConnectFlow, users: list[UUID], spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """Nobody is known at the start; the grant and the account come back, and `save` stores them for the user found."""
    begun = await flow.begin(None, data=DATA)
    done = await flow.complete(await agree(begun.url), sent(begun))
    assert (done.user_id, done.connection, done.data, await rows(admin)) == (None, None, DATA, [])
    connection = await flow.save(users[1], done)
    assert (connection.user_id, connection.client_id, connection.spotify_user_id) == (users[1], "demo-client", "alice")
    assert 3500 < connection.remaining <= 3600
    begun = await flow.begin(users[0])
    with pytest.raises(ValueError, match="completed"):
        await flow.save(users[1], await flow.complete(await agree(begun.url), sent(begun)))


async def test_a_bot_completes_for_the_user_of_the_state(
    flow: ConnectFlow, users: list[UUID], spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """`complete_unbound` takes what `start` has started, and nothing that a browser is bound to."""
    done = await flow.complete_unbound(await agree(await flow.start(users[0])))
    assert (done.user_id, done.data) == (users[0], {})
    callbacks = [await agree((await flow.begin(user)).url) for user in (users[1], None)]
    for callback in callbacks:
        with pytest.raises(ConnectFailed, match="another browser"):
            await flow.complete_unbound(callback)
    # Who writes the database takes the cookie away: there is no user to complete it for.
    await admin.execute("update spotconn.pending_connect set cookie_hash = null where user_id is null")
    with pytest.raises(ConnectFailed, match="another browser"):
        await flow.complete_unbound(callbacks[1])
    assert (await pending(admin), len(await rows(admin))) == (2, 1)


async def test_a_front_end_posts_the_callback_of_its_user(flow: ConnectFlow, users: list[UUID]) -> None:
    """`finish` takes what `begin` has begun for that user, and no sign-in."""
    assert (await flow.finish(users[0], await agree((await flow.begin(users[0])).url))).user_id == users[0]
    with pytest.raises(ConnectFailed, match="another user"):
        await flow.finish(users[0], await agree((await flow.begin(None)).url))


async def test_scopes_of_one_authorization(flow: ConnectFlow, user: UUID, spotify: FakeSpotify) -> None:
    """They take the place of the flow's own."""
    url = await flow.start(user, scopes=["streaming"])
    assert (await flow.finish(user, await agree(url))).scope == frozenset({"streaming"})


async def test_begin_counts_as_start(flow: ConnectFlow, user: UUID) -> None:
    """Twenty in all; without a user nothing is counted."""
    for _ in range(10):
        await flow.start(user)
        await flow.begin(user)
    with pytest.raises(TryLater):
        await flow.begin(user)
    await flow.begin(None)


@pytest.mark.parametrize(
    "data", [{str(n): "" for n in range(9)}, {"a": "x" * 1000}, {"a": 1}, {"a": "\ud800"}, None, [("a", "b")]]
)
async def test_data_that_is_too_much_is_named(
    flow: ConnectFlow, user: UUID, admin: asyncpg.Connection, data: dict[str, str]
) -> None:
    """It starts nothing; nor does what is no mapping of texts."""
    with pytest.raises(ValueError, match="data: "):
        await flow.begin(user, data=data)
    assert await pending(admin) == 0


async def test_data_of_any_characters_comes_back(flow: ConnectFlow, spotify: FakeSpotify) -> None:
    """As much as is allowed, also what Postgres and the stored text hold in another form."""
    data = {"a.b": '\x00"\\\n.', "": "", "c": "\U0001f3b5" * 990}
    begun = await flow.begin(None, data=data)
    assert (await flow.complete(await agree(begun.url), sent(begun))).data == data


async def test_another_account_takes_no_place_where_the_same_is_demanded(
    flow: ConnectFlow, user: UUID, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """By each way back; the old row stays, and a call that does not demand it replaces the row."""
    await flow.finish(user, await agree(await flow.start(user), "alice"), same_account=True)
    before = await rows(admin)
    begun, signing_in = await flow.begin(user), await flow.begin(None)
    other = await flow.complete(await agree(signing_in.url, "bob"), sent(signing_in), same_account=True)
    for call in (
        flow.finish(user, await agree(await flow.start(user), "bob"), same_account=True),
        flow.complete(await agree(begun.url, "bob"), sent(begun), same_account=True),
        flow.complete_unbound(await agree(await flow.start(user), "bob"), same_account=True),
        flow.save(user, other, same_account=True),
    ):
        with pytest.raises(ConnectFailed) as raised:
            await call
        assert raised.value.reason == "other_account"
        assert await rows(admin) == before
    assert (await flow.save(user, other)).spotify_user_id == "bob"
