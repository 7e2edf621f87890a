"""Synchronous tests with users of an own table, whose ids are integers."""

import asyncio

import pytest
from fastapi.testclient import TestClient

from now_playing import app, sessions
from spotconn import ConnectionStore, Profile, user_id
from spotconn.testing import Answer, FakeSpotify, add_user


@pytest.fixture
def spotconn_user(spotconn_dsn: str, spotify_fake: FakeSpotify) -> int:
    """Return the id of a connected user, in place of the fixture of that name."""
    return connected_user(spotconn_dsn, spotify_fake, 42, "alice")


def connected_user(dsn: str, spotify: FakeSpotify, number: int, account: str) -> int:
    """Add a user who has connected an account at Spotify, and return the id."""
    spotify.add_account(account)
    asyncio.run(save_connection(dsn, spotify, number, account))
    return number


async def save_connection(dsn: str, spotify: FakeSpotify, number: int, account: str) -> None:
    """Add the user and save the connection, in an event loop of their own."""
    await add_user(dsn, user_id=number)
    async with ConnectionStore.open(dsn) as store:
        grant = spotify.authorize(account, ["user-read-currently-playing"])
        await store.save(number, grant, Profile(spotify_user_id=account))


def test_each_user_has_a_connection(
    spotconn_env: None, spotconn_user: int, spotconn_dsn: str, spotify_fake: FakeSpotify
) -> None:
    """The service finds that of the one who is signed in."""
    bob = connected_user(spotconn_dsn, spotify_fake, 43, "bob")
    spotify_fake.on("GET", "/v1/me/player/currently-playing", Answer(status=204))
    with TestClient(app) as browser:
        browser.cookies.set("session", "of-the-test")
        for number in (spotconn_user, bob):
            sessions["of-the-test"] = user_id(number)
            assert browser.get("/playing").json() == {"title": None}
            status = browser.get("/spotify/connection").json()
            assert status["spotify_user_id"] == {42: "alice", 43: "bob"}[number]
