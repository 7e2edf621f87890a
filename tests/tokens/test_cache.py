"""The cache of a process: time is an argument, and what is heard during a read decides about it."""

import math
import time
from uuid import UUID, uuid4

import pytest

from spotconn._tokens.cache import SWEPT, ConnectionCache
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
    for at, served in ((TTL - 1, True), (TTL, False)):
        assert bool(cache.get(user, START + at)) == bool(cache.fresh(user, START + at)) == served


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


def test_after_several_losses_each_entry_ends_with_the_trust_in_which_it_was_read(cache: ConnectionCache) -> None:
    """Also where all were within one ttl. A clear ends them all, and what is read after it counts."""
    users = [uuid4() for _ in range(3)]
    for number, one in enumerate(users):
        cache.trust(START + TTL + number)
        fill(cache, one)
        cache.distrust()
    cache.trust(STALE)
    for at in range(4):
        assert [cache.get(one, START + TTL - 1 + at) is not None for one in users] == [at <= n for n in range(3)]
    last = cache.entries[users[2]]
    cache.clear()
    assert not any(cache.get(one, START) for one in users)
    assert last.trust.until == -math.inf, "who has taken an entry sees that it does not count"
    fill(cache, users[0])
    assert cache.get(users[0], STALE - 1)
    assert not cache.sweep()
    assert set(cache.entries) == {users[0]}


def test_what_is_cleared_is_dropped_in_steps(user: UUID) -> None:
    """Of a million entries in one step, a process would stand still. What is cached in between stays."""
    cache = ConnectionCache(ttl=TTL, size=10 * SWEPT)
    others = [UUID(int=number) for number in range(3 * SWEPT)]
    for number, one in enumerate(others):
        fill(cache, one)
        if number % SWEPT == 0:  # a loss, whose trust is over at the next one
            cache.trust(START + 2 * number)
            cache.distrust()
    cache.clear()
    assert len(cache) == 2 * SWEPT
    assert not cache.get(others[-1], START)
    fill(cache, others[-1])
    fill(cache, user)
    steps = 1
    while cache.sweep():
        steps += 1
    assert steps == 2
    assert set(cache.entries) == {others[-1], user}


def test_a_loss_takes_no_longer_the_more_entries_there_are() -> None:
    """It ends what they share, not each of them."""
    seconds = [_seconds_of_a_loss(entries) for entries in (500, 20_000)]
    assert seconds[1] < 10 * seconds[0]


def _seconds_of_a_loss(entries: int) -> float:
    """The shortest of some rounds, in processor time."""
    cache = ConnectionCache(ttl=TTL, size=entries)
    for number in range(entries):
        fill(cache, UUID(int=number))
    rounds = list[float]()
    for _ in range(20):
        begun = time.process_time()
        for _ in range(5):
            cache.trust(STALE)
            cache.distrust()
        rounds.append(time.process_time() - begun)
    return min(rounds)


def test_a_large_cache_makes_room_for_several_at_once(user: UUID) -> None:
    """The oldest hundredth goes: to find the oldest takes a dict as long as there were others before it."""
    cache = ConnectionCache(ttl=TTL, size=1000)
    for number in range(1000):
        fill(cache, UUID(int=number))
    fill(cache, user)
    assert [*cache.entries] == [*(UUID(int=number) for number in range(10, 1000)), user]
    for number in range(9):
        fill(cache, UUID(int=number))
    assert len(cache) == 1000


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
