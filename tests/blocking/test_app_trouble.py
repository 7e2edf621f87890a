"""What refuses an app itself is found in the answers to requests and to spotipy, in any thread."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from queue import Queue
from uuid import UUID

import pytest
import requests
import spotipy

from spotconn import SchemaMismatch, TokenManager, events
from spotconn.blocking import BlockingTokens
from spotconn.testing import Answer
from support.blocking_harness import Harness, Make

PREMIUM = "Active premium subscription required for the owner of the app."
QUOTA = Answer(status=429, json={"error": {"status": 429, "message": "Too many", "reason": "QUOTA_EXCEEDED"}})
PLAYER = "/v1/me/player"
SECONDS = 30


@pytest.fixture
def told() -> "Queue[events.Event]":
    return Queue()


@pytest.fixture
def tokens(harness: Harness, make: Make, told: "Queue[events.Event]") -> BlockingTokens:
    opened: Callable[[], AbstractAsyncContextManager[TokenManager]] = partial(harness.open, on_event=told.put)
    return make(opened)


@pytest.fixture
def user(harness: Harness) -> UUID:
    """A user with a good token, whose connection names its app."""
    (user,) = harness.connect(3600)
    return user


def test_requests_and_spotipy_report_what_they_have_read(
    harness: Harness, tokens: BlockingTokens, user: UUID, told: "Queue[events.Event]"
) -> None:
    """Of requests that are streamed nothing is read; each kind is told once, however it was sent."""
    url, auth = f"{harness.url}{PLAYER}", tokens.auth(user)
    harness.spotify.on("GET", PLAYER, Answer(status=403, body=PREMIUM.encode()))
    with requests.get(url, auth=auth, stream=True, timeout=SECONDS) as streamed:
        assert streamed.raw.read() == PREMIUM.encode()
    harness.spotify.on("GET", PLAYER, QUOTA)
    for _ in range(2):
        assert requests.get(url, auth=auth, timeout=SECONDS).json()["error"]["reason"] == "QUOTA_EXCEEDED"
    harness.spotify.on("GET", "/v1/me", Answer(status=403, body=PREMIUM.encode()))
    session = requests.Session()
    session.auth = auth
    client = spotipy.Spotify(requests_session=session)
    client.prefix = f"{harness.url}/v1/"
    with pytest.raises(spotipy.SpotifyException), session:
        client.me()
    found = [told.get(timeout=SECONDS) for _ in range(2)]
    assert [(type(event), getattr(event, "reason", None)) for event in found] == [
        (events.AppRefused, "quota_exceeded"),
        (events.AppRefused, "premium_required"),
    ]
    assert told.empty()


def test_what_is_sent_in_another_way_is_reported(
    tokens: BlockingTokens, user: UUID, told: "Queue[events.Event]"
) -> None:
    """In any thread and without waiting; before the first call there is no manager to report to."""
    tokens.report_answer(user, 403, PREMIUM)
    tokens.get_valid_token(user)
    assert told.empty()
    tokens.report_answer(user, 403, PREMIUM)
    event = told.get(timeout=SECONDS)
    assert isinstance(event, events.AppRefused)
    with pytest.raises(ValueError, match="UUID"):
        tokens.report_answer("alice", 200)


def test_a_readiness_probe_without_await(harness: Harness, tokens: BlockingTokens) -> None:
    """The errors are those of the manager, and of opening it."""
    harness.connect()
    tokens.check()
    harness.sql("alter function spotconn.verify() rename to elsewhere")
    try:
        with pytest.raises(SchemaMismatch):
            tokens.check()
    finally:
        harness.sql("alter function spotconn.elsewhere() rename to verify")
