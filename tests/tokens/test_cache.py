"""The cache of a process: time is an argument, and what is heard during a read decides about it."""

import math
from uuid import UUID, uuid4

import pytest

from spotconn._tokens.cache import ConnectionCache
from spotconn._tokens.stored_token import StoredToken

START = 1_800_000_000.0
TTL = 30.0
STALE = START + 3300


def stored(minutes: int = 60) -> StoredToken:
    """A token that ends so many minutes after the start."""
    return StoredToken(f"access-{minutes}", b"", START + 60 * minutes, None)


@pytest.fixture
def cache() -> ConnectionCache:
    return ConnectionCache(ttl=TTL, size=3)


@pytest.fixture
def user() -> UUID:
    return uuid4()


def fill(cache: ConnectionCache, user: UUID) -> None:
    with cache.reading(user) as pending:
        cache.put(stored(), pending, now=START, stale_at=STALE)


def test_without_cover_a_connection_lives_for_the_ttl(cache: ConnectionCache, user: UUID) -> None:
    """Neither longer, nor before it was remembered, as after a clock was set back."""
    fill(cache, user)
    assert [cache.get(user, START + at) is None for at in (-1, 0, TTL - 1, TTL)] == [True, False, False, True]
    assert cache.entries[user].fresh_until == START + TTL


def test_with_cover_it_lives_until_it_is_stale_as_long_as_the_cover_is_renewed(
    cache: ConnectionCache, user: UUID
) -> None:
    """A cover that is not renewed ends by the clock alone; then nothing is served, and what is renewed serves again."""
    cache.trust(START + TTL)
    fill(cache, user)
    assert cache.entries[user].fresh_until == STALE
    assert cache.get(user, START + TTL - 1)
    assert not cache.get(user, START + TTL)
    cache.trust(STALE + TTL)
    assert cache.get(user, STALE - 1)
    assert not cache.get(user, STALE)


def test_what_was_trusted_at_a_loss_lives_until_the_trust_would_have_ended(cache: ConnectionCache, user: UUID) -> None:
    """Not longer, also where notifications arrive again: those in between were missed."""
    cache.trust(START + TTL)
    fill(cache, user)
    cache.distrust()
    assert cache.trusted_until == math.inf
    cache.distrust()
    cache.trust(STALE)
    entry = cache.entries[user]
    assert entry.until == entry.fresh_until == START + TTL
    assert cache.get(user, START + TTL - 1)
    assert not cache.get(user, START + TTL)


def test_what_is_read_after_a_loss_lives_for_the_ttl(cache: ConnectionCache, user: UUID) -> None:
    """From its read on; so does what a read brings that was under way at the loss, also where trust has come back."""
    cache.trust(START - 1)
    with cache.reading(user) as pending:
        cache.distrust()
        cache.trust(STALE)
        cache.put(stored(), pending, now=START, stale_at=STALE)
    assert cache.entries[user].until == cache.entries[user].fresh_until == START + TTL
    cache.distrust()
    fill(cache, user)
    assert cache.entries[user].until == START + TTL


def test_a_loss_makes_nothing_live_longer(cache: ConnectionCache, user: UUID) -> None:
    """What was not trusted when it was read ends when it would have."""
    fill(cache, user)
    cache.trust(STALE)
    cache.distrust()
    assert cache.entries[user].until == START + TTL


def test_a_read_that_began_without_cover_lives_for_the_ttl(cache: ConnectionCache, user: UUID) -> None:
    """What changed before the cover began was not heard of."""
    with cache.reading(user) as pending:
        cache.trust(STALE + TTL)
        cache.put(stored(), pending, now=START, stale_at=STALE)
    assert not cache.get(user, START + TTL)


@pytest.mark.parametrize(("invalidations", "kept"), [(0, True), (1, False), (2, False)])
def test_what_is_heard_during_a_read_decides_about_it(
    cache: ConnectionCache, user: UUID, invalidations: int, *, kept: bool
) -> None:
    """A notification does not say what is stored now, so after one nothing of that read is remembered."""
    with cache.reading(user) as pending:
        for _ in range(invalidations):
            cache.invalidate(user)
        cache.put(stored(), pending, now=START, stale_at=STALE)
    assert (user in cache.entries) is kept


def test_a_refresh_of_this_process_replaces_what_was_read_before(cache: ConnectionCache, user: UUID) -> None:
    """The entry and the reads under way are out of date, and what the refresh brings is remembered."""
    fill(cache, user)
    with cache.reading(user) as read, cache.reading(user) as refresh:
        cache.supersede(refresh)
        assert not cache.entries
        cache.put(stored(61), refresh, now=START, stale_at=STALE)
        cache.put(stored(), read, now=START, stale_at=STALE)
    assert cache.entries[user].access_token == "access-61"


def test_a_refresh_during_which_the_row_has_changed_is_not_remembered(cache: ConnectionCache, user: UUID) -> None:
    """The user may have connected anew after the refresh was saved."""
    with cache.reading(user) as refresh:
        cache.invalidate(user)
        cache.supersede(refresh)
        cache.put(stored(), refresh, now=START, stale_at=STALE)
    assert not cache.entries


def test_what_is_heard_of_one_user_does_not_touch_another(cache: ConnectionCache, user: UUID) -> None:
    """Neither what is remembered of them nor a read under way."""
    other = uuid4()
    fill(cache, other)
    with cache.reading(user) as pending:
        for _ in range(2):
            cache.invalidate(other)
        cache.put(stored(), pending, now=START, stale_at=STALE)
    assert set(cache.entries) == {user}


def test_two_reads_of_one_user_are_judged_each_by_what_it_heard(cache: ConnectionCache, user: UUID) -> None:
    """One that began after the change brings what is stored now."""
    with cache.reading(user) as old:
        cache.invalidate(user)
        with cache.reading(user) as new:
            cache.put(stored(61), new, now=START, stale_at=STALE)
        cache.put(stored(), old, now=START, stale_at=STALE)
    assert cache.entries[user].access_token == "access-61"
    assert not cache.pending, "a read that has ended is kept"


def test_the_number_is_bounded(cache: ConnectionCache) -> None:
    """The one remembered longest goes; who is remembered again counts as new."""
    users = [uuid4() for _ in range(4)]
    for user in (*users[:3], users[0], users[3]):
        fill(cache, user)
    assert set(cache.entries) == {users[0], users[2], users[3]}


@pytest.mark.parametrize(("ttl", "size"), [(0, 3), (30, 0)])
def test_it_can_be_switched_off(user: UUID, ttl: float, size: int) -> None:
    """With no time or no room nothing is remembered, covered or not."""
    cache = ConnectionCache(ttl=ttl, size=size)
    cache.trust(math.nextafter(math.inf, 0))
    fill(cache, user)
    assert not cache.entries


def test_once_closed_it_remembers_nothing(cache: ConnectionCache, user: UUID) -> None:
    """Also of a read that ends later."""
    fill(cache, user)
    with cache.reading(user) as pending:
        cache.close()
        cache.put(stored(), pending, now=START, stale_at=STALE)
    fill(cache, user)
    assert not cache.entries


def test_no_token_shows(cache: ConnectionCache, user: UUID) -> None:
    """Not in what is remembered, and the refresh token is not in it at all."""
    fill(cache, user)
    entry = cache.entries[user]
    assert "access-60" not in repr(entry)
    assert not hasattr(entry, "refresh_token")
