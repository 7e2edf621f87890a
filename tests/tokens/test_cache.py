"""The cache of a process: time is an argument, and what is heard during a read decides about it."""

import math
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from spotconn._tokens.cache import ConnectionCache
from spotconn.models import Connection

START = 1_800_000_000.0
TTL = 30.0
STALE = START + 3300


def stored(user: UUID, minutes: int = 60) -> Connection:
    """A connection whose token ends so many minutes after the start; that is its version."""
    ends = datetime.fromtimestamp(START, UTC) + timedelta(minutes=minutes)
    return Connection(
        id=uuid4(), user_id=user, spotify_user_id="alice", access_token="access", refresh_token="refresh",
        expires_at=ends, connected_at=None, display_name=None, email=None, scope=None,
    )  # fmt: skip


@pytest.fixture
def cache() -> ConnectionCache:
    return ConnectionCache(ttl=TTL, size=3)


@pytest.fixture
def user() -> UUID:
    return uuid4()


def filled(cache: ConnectionCache, connection: Connection, now: float = START) -> None:
    with cache.reading(connection.user_id) as pending:
        cache.put(connection, pending, now=now, stale_at=STALE)


def test_without_cover_a_connection_lives_for_the_ttl(cache: ConnectionCache, user: UUID) -> None:
    """Neither longer, nor before it was remembered, as after a clock was set back."""
    filled(cache, stored(user))
    assert [cache.get(user, START + at) is None for at in (-1, 0, TTL - 1, TTL)] == [True, False, False, True]
    assert cache.entries[user].fresh_until == START + TTL


def test_with_cover_it_lives_until_it_is_stale_as_long_as_the_cover_is_renewed(
    cache: ConnectionCache, user: UUID
) -> None:
    """A cover that is not renewed ends by the clock alone; then nothing is served, and what is renewed serves again."""
    cache.trust(START + TTL)
    filled(cache, stored(user))
    assert cache.entries[user].fresh_until == STALE
    assert cache.get(user, START + TTL - 1)
    assert not cache.get(user, START + TTL)
    cache.trust(STALE + TTL)
    assert cache.get(user, STALE - 1)
    assert not cache.get(user, STALE)


def test_lost_cover_empties_it(cache: ConnectionCache, user: UUID) -> None:
    """Also of what was remembered before, and what a read brings that began with cover is not remembered."""
    filled(cache, stored(user))
    cache.trust(START + TTL)
    with cache.reading(user) as pending:
        cache.distrust()
        cache.trust(START + TTL)
        cache.put(stored(user), pending, now=START, stale_at=STALE)
    assert not cache.entries
    cache.distrust()
    assert cache.trusted_until == math.inf


def test_a_read_that_began_without_cover_lives_for_the_ttl(cache: ConnectionCache, user: UUID) -> None:
    """What changed before the cover began was not heard of."""
    with cache.reading(user) as pending:
        cache.trust(STALE + TTL)
        cache.put(stored(user), pending, now=START, stale_at=STALE)
    assert not cache.get(user, START + TTL)


@pytest.mark.parametrize(
    ("heard", "kept"),
    [
        ([], True),
        ([60], True),
        ([59], False),
        ([59, 60], True),
        ([60, 61], False),
        ([None], False),
        ([None, 60], False),
    ],
)
def test_what_is_heard_during_a_read_decides_about_it(
    cache: ConnectionCache, user: UUID, heard: list[int | None], *, kept: bool
) -> None:
    """The version heard of last is the one that may be remembered; after a discard none is."""
    with cache.reading(user) as pending:
        for minutes in heard:
            if minutes is None:
                cache.invalidate(user)
            else:
                cache.on_change(user, stored(user, minutes).expires_at)
        cache.put(stored(user), pending, now=START, stale_at=STALE)
    assert (user in cache.entries) is kept


def test_another_version_is_forgotten_and_the_same_kept(cache: ConnectionCache, user: UUID) -> None:
    """A process hears of its own refresh, too, and keeps what it has remembered of it."""
    filled(cache, stored(user))
    cache.on_change(user, stored(user).expires_at)
    assert user in cache.entries
    cache.on_change(user, stored(user, 61).expires_at)
    assert user not in cache.entries


def test_what_is_heard_of_one_user_does_not_touch_another(cache: ConnectionCache, user: UUID) -> None:
    """Neither what is remembered of them nor a read under way."""
    other = uuid4()
    filled(cache, stored(other))
    with cache.reading(user) as pending:
        for _ in range(2):
            cache.invalidate(other)
        cache.put(stored(user), pending, now=START, stale_at=STALE)
    assert set(cache.entries) == {user}


def test_two_reads_of_one_user_are_judged_each_by_what_it_heard(cache: ConnectionCache, user: UUID) -> None:
    """One that began after the change brings what is stored now."""
    with cache.reading(user) as old:
        cache.invalidate(user)
        with cache.reading(user) as new:
            cache.put(stored(user, 61), new, now=START, stale_at=STALE)
        cache.put(stored(user), old, now=START, stale_at=STALE)
    assert cache.entries[user].expires_at == stored(user, 61).expires_at
    assert not cache._pending_reads, "a read that has ended is kept"


def test_the_number_is_bounded(cache: ConnectionCache) -> None:
    """The one remembered longest goes; who is remembered again counts as new."""
    users = [uuid4() for _ in range(4)]
    for user in (*users[:3], users[0], users[3]):
        filled(cache, stored(user))
    assert set(cache.entries) == {users[0], users[2], users[3]}


@pytest.mark.parametrize(("ttl", "size"), [(0, 3), (30, 0)])
def test_it_can_be_switched_off(user: UUID, ttl: float, size: int) -> None:
    """With no time or no room nothing is remembered, covered or not."""
    cache = ConnectionCache(ttl=ttl, size=size)
    cache.trust(math.nextafter(math.inf, 0))
    filled(cache, stored(user))
    assert not cache.entries


def test_once_closed_it_remembers_nothing(cache: ConnectionCache, user: UUID) -> None:
    """Also of a read that ends later."""
    filled(cache, stored(user))
    with cache.reading(user) as pending:
        cache.close()
        cache.put(stored(user), pending, now=START, stale_at=STALE)
    filled(cache, stored(user))
    assert not cache.entries


def test_no_token_shows(cache: ConnectionCache, user: UUID) -> None:
    """Not in what is remembered, and the refresh token is not in it at all."""
    filled(cache, stored(user))
    entry = cache.entries[user]
    assert "access'" not in repr(entry)
    assert not hasattr(entry, "refresh_token")


def test_what_happens_to_one_user_leaves_the_reads_of_others_shared(cache: ConnectionCache, user: UUID) -> None:
    """The epoch of a user changes by what concerns that user while a read is under way, and never comes again."""
    epochs = [cache.epoch(user)]
    with cache.reading(user):
        cache.invalidate(uuid4())
        cache.on_change(uuid4(), datetime.fromtimestamp(START, UTC))
        assert cache.epoch(user) == epochs[0]
        cache.invalidate(user)
        epochs.append(cache.epoch(user))
        cache.on_change(user, datetime.fromtimestamp(START, UTC))
        epochs.append(cache.epoch(user))
        cache.clear()
        epochs.append(cache.epoch(user))
    with cache.reading(user):
        cache.invalidate(user)
        epochs.append(cache.epoch(user))
    assert len(set(epochs)) == 5
    assert not cache._epochs, "a user without a read has none"
