"""Tests of the service, against a real Postgres and a simulated Spotify."""

from uuid import UUID, uuid4

import pytest

from spotconn import TokenManager
from spotconn.testing import Answer, FakeClock, FakeSpotify, step_database_clock
from top_tracks import top_tracks

pytestmark = pytest.mark.asyncio  # not needed with asyncio_mode = "auto"
HOUR = 3600
DAY = 24 * HOUR


async def later(seconds: float, clock: FakeClock, dsn: str) -> None:
    """Let time pass, for the manager, the simulated Spotify and the database."""
    clock.step(seconds)
    await step_database_clock(dsn, seconds)


async def test_a_connected_user_has_tracks(spotconn_tokens: TokenManager, spotconn_user: UUID) -> None:
    """Three tracks are named."""
    assert (await top_tracks(spotconn_tokens, spotconn_user)).count(" / ") == 2


async def test_an_old_token_is_no_trouble(
    spotconn_tokens: TokenManager,
    spotconn_user: UUID,
    spotconn_clock: FakeClock,
    spotconn_dsn: str,
    spotify_fake: FakeSpotify,
) -> None:
    """An hour later the token is refreshed, once, and the user sees nothing of it."""
    await later(HOUR, spotconn_clock, spotconn_dsn)
    assert " / " in await top_tracks(spotconn_tokens, spotconn_user)
    assert " / " in await top_tracks(spotconn_tokens, spotconn_user)
    assert spotify_fake.refresh_calls == 1


async def test_a_rejected_token_is_no_trouble(
    spotconn_tokens: TokenManager, spotconn_user: UUID, spotify_fake: FakeSpotify
) -> None:
    """After a 401 the request is repeated with another token."""
    spotify_fake.reject_access_token(await spotconn_tokens.get_valid_token(spotconn_user))
    assert " / " in await top_tracks(spotconn_tokens, spotconn_user)


async def test_six_months_later_the_user_is_asked(
    spotconn_tokens: TokenManager, spotconn_user: UUID, spotconn_clock: FakeClock, spotconn_dsn: str
) -> None:
    """Spotify has ended the connection."""
    await later(190 * DAY, spotconn_clock, spotconn_dsn)
    assert "connect Spotify" in await top_tracks(spotconn_tokens, spotconn_user)


async def test_a_busy_spotify_means_later(
    spotconn_tokens: TokenManager,
    spotconn_user: UUID,
    spotconn_clock: FakeClock,
    spotconn_dsn: str,
    spotify_fake: FakeSpotify,
) -> None:
    """Where Spotify asks to wait, so is the user."""
    await later(HOUR, spotconn_clock, spotconn_dsn)
    spotify_fake.script(Answer.too_many_requests(retry_after="60"))
    assert "later" in await top_tracks(spotconn_tokens, spotconn_user)


async def test_a_stranger_is_asked_to_connect(spotconn_tokens: TokenManager) -> None:
    """A user who has never connected is no error."""
    assert "connect Spotify" in await top_tracks(spotconn_tokens, uuid4())
