"""Spotify fails in every way it has; no connection is lost, and the next call works once Spotify does again."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import NamedTuple

import pytest

from spotconn import ReauthorizationRequired, SpotifyUnavailable
from spotconn.testing import Answer
from support.database import Database, serving
from support.fault_harness import SETTLES, SHORT_REFRESH_TIMEOUT, FaultHarness, fault_harness
from support.waiting_crowd import WaitingCrowd

SHARED, LOCAL = "unavailable", None
"""What is recorded of a failure: what Spotify answered holds for every process, this host's network for none."""


class Fault(NamedTuple):
    """One way to fail.

    Attributes:
        name: of it.
        answer: in place of the right one.
        recorded: of the failure, for every process.
        passes: whether one such answer is overcome within the call.
        rotation: whether refresh tokens are single-use; after an answer that was lost they cannot be.
    """

    name: str
    answer: Answer
    recorded: str | None = SHARED
    passes: bool = True
    rotation: bool = True


def http_date() -> str:
    """Two seconds from now, as an HTTP date, which has no fractions."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


FAULTS = [
    Fault("429 without Retry-After", Answer.too_many_requests()),
    Fault("429 with seconds", Answer.too_many_requests("1"), passes=False),
    Fault("429 with a date", Answer.too_many_requests("date"), passes=False),
    Fault("429 with a date that has passed", Answer.too_many_requests("Wed, 21 Oct 2015 07:28:00 GMT")),
    Fault("429 with garbage", Answer.too_many_requests("soon")),
    Fault("429 with a negative number", Answer.too_many_requests("-1")),
    *[Fault(str(status), Answer.unavailable(status)) for status in (500, 501, 502, 503, 504)],
    Fault("200 with HTML", Answer(headers={"content-type": "text/html"}, body=b"<html>hello</html>")),
    Fault("200 with truncated JSON", Answer.truncated()),
    Fault("200 with nothing", Answer()),
    Fault("cut", Answer(cut=True, body=b'{"access'), LOCAL),
    Fault("reset", Answer.reset(), LOCAL, rotation=False),
    Fault("black hole", Answer.black_hole(), LOCAL, passes=False),
]
LASTING = [
    fault
    for fault in FAULTS
    if fault.name not in {"429 with a negative number", "501", "502", "504", "200 with truncated JSON"}
]
"""One of each kind: those left out are read in the same way, as the first test shows."""


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """A server of this module's own."""
    with serving() as own:
        yield own


def strike(scene: FaultHarness, fault: Fault, *, times: int) -> None:
    answer = Answer.too_many_requests(http_date()) if fault.name == "429 with a date" else fault.answer
    scene.spotify.script(*[answer] * times)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
async def test_a_passing_fault_of_spotify_loses_nothing(database: Database, fault: Fault) -> None:
    """One bad answer costs an expired user one retry within the call, or the call and not the next one."""
    async with fault_harness(database, rotation=fault.rotation) as scene:
        strike(scene, fault, times=1)
        if fault.passes:
            token = await scene.tokens.get_valid_token(scene.user)
        else:
            scene.hurry_spotify()
            with pytest.raises(SpotifyUnavailable):
                await scene.tokens.get_valid_token(scene.user)
            scene.give_time()
            token = await scene.ask_until_served()
        assert token == (await scene.row())["access_token"]
        assert scene.spotify.token_calls == 2
        await scene.check()


async def check_pause(scene: FaultHarness) -> None:
    """Nobody is asked in a pause. A call that came too late for one begins the next, which is twice as long."""
    for pauses in (1, 2, 3):
        calls = scene.spotify.token_calls
        with pytest.raises(SpotifyUnavailable) as raised:
            await scene.tokens.get_valid_token(scene.user)
        if scene.spotify.token_calls == calls:
            assert 0 < (raised.value.retry_after or 0) <= 2**pauses
            return
    pytest.fail("Spotify is asked in every pause")


@pytest.mark.parametrize("fault", LASTING, ids=[fault.name for fault in LASTING])
async def test_a_lasting_fault_of_spotify_ends_with_it(database: Database, fault: Fault) -> None:
    """While Spotify fails, the call raises in time, pauses as far as it should, keeps the row and holds no lease.

    Everybody who waits ends with an error of the own.
    """
    async with fault_harness(database, rotation=fault.rotation) as scene:
        strike(scene, fault, times=100)
        scene.hurry_spotify()
        crowd = WaitingCrowd(scene.tokens, scene.user, scene.before["access_token"])
        crowd.begin()
        crowd.reject()
        async with asyncio.timeout(SHORT_REFRESH_TIMEOUT + 3):
            with pytest.raises(SpotifyUnavailable) as raised:
                await scene.tokens.get_valid_token(scene.user)
            others = await crowd.outcomes()
        assert all(isinstance(other, SpotifyUnavailable) and other is not raised.value for other in others)
        assert raised.value.answered is (fault.recorded is SHARED)
        await check_pause(scene)
        assert dict(await scene.row()) == dict(scene.before)
        assert await scene.lease_and_failure() == (False, fault.recorded)
        scene.spotify._script.clear()
        scene.give_time()
        token = await scene.ask_until_served()
        assert token == (await scene.row())["access_token"]
        await scene.check()


async def test_a_fault_of_spotify_delays_nobody_who_has_a_usable_token(database: Database) -> None:
    """A usable token is served at once however Spotify fails, and Spotify is asked again only after a pause."""
    async with fault_harness(database, ttl=100) as scene:
        scene.spotify.script(Answer.too_many_requests(), Answer.too_many_requests("60"))
        with scene.spotify.hold() as held:
            token = await scene.tokens.get_valid_token(scene.user)
            await held.reached()
            (refresh,) = scene.tokens._source.refreshes.tasks
            assert not refresh.done(), "nobody waits for it"
        await asyncio.gather(refresh, return_exceptions=True)
        assert scene.spotify.token_calls == 2
        async with asyncio.timeout(SETTLES):  # the pause takes a minute
            assert [await scene.tokens.get_valid_token(scene.user) for _ in range(5)] == [token] * 5
        await asyncio.gather(*scene.tokens._source.refreshes.tasks, return_exceptions=True)
        assert scene.spotify.token_calls == 2
        assert dict(await scene.row()) == dict(scene.before)
        await scene.check()


async def test_a_lost_answer_with_a_single_use_token_is_told_cleanly(database: Database) -> None:
    """If Spotify rotated the refresh token and its answer was lost, nothing can mend that: the user must reconnect."""
    async with fault_harness(database) as scene:
        scene.spotify.script(Answer.reset())
        for _ in range(2):
            with pytest.raises(ReauthorizationRequired) as raised:
                await scene.tokens.get_valid_token(scene.user)
            assert raised.value.reason == "revoked"
        assert scene.spotify.token_calls == 2
        assert dict(await scene.row()) == dict(scene.before), "the tokens stay as they are"
        assert await scene.lease_and_failure() == (False, "revoked")
