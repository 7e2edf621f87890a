"""Tests of the FastAPI service, by its synchronous TestClient and by a unittest class."""

import asyncio
import unittest
from collections.abc import Iterator
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from now_playing import app, sessions
from spotconn.testing import Answer, FakeClock, FakeSpotify, add_user, step_database_clock

PLAYING = "/v1/me/player/currently-playing"


@pytest.fixture
def spotify_redirect_uris() -> tuple[str, ...]:
    """Return what is registered for the app: the route of the callback, on the host of the client below."""
    return ("http://127.0.0.1/spotify/callback",)


@pytest.fixture
def browser(spotconn_env: None, spotconn_dsn: str, spotify_fake: FakeSpotify) -> Iterator[TestClient]:
    """Return a client of the service, in which a new user is signed in; "ann" is an account at Spotify."""
    spotify_fake.add_account("ann")
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        sign_in(client, asyncio.run(add_user(spotconn_dsn)))
        yield client


def sign_in(browser: TestClient, user_id: UUID) -> None:
    """Make this the browser of a user who has signed in and done nothing else."""
    sessions["of-the-test"] = user_id
    browser.cookies.clear()
    browser.cookies.set("session", "of-the-test")


def consent_page(browser: TestClient) -> str:
    """Press "Connect Spotify" and return the URL of Spotify's consent page, to which the service redirects."""
    url: str = browser.post("/spotify/connect", data={"next": "/settings"}).headers["location"]
    return url


def later(seconds: float, clock: FakeClock, dsn: str) -> None:
    """Let time pass, for the service, the simulated Spotify and the database."""
    clock.step(seconds)
    asyncio.run(step_database_clock(dsn, seconds))


def outcome(browser: TestClient, callback: str) -> str:
    """Return where the service redirects the browser that comes back from Spotify."""
    location: str = browser.get(callback).headers["location"]
    return location


def test_a_user_connects(browser: TestClient, spotify_fake: FakeSpotify) -> None:
    """The user agrees, the browser comes back, and the connection works."""
    spotify_fake.on("GET", PLAYING, Answer(json={"item": {"name": "Cobalt"}}))
    assert browser.get("/playing").status_code == 409
    callback = spotify_fake.agree(consent_page(browser), "ann")
    assert outcome(browser, callback) == "/settings?spotify=connected"
    assert browser.get("/playing").json() == {"title": "Cobalt"}


def test_a_user_cancels(browser: TestClient, spotify_fake: FakeSpotify) -> None:
    """The service is told so, and nothing is connected."""
    assert outcome(browser, spotify_fake.cancel(consent_page(browser))) == "/?spotify=denied"
    assert browser.get("/playing").status_code == 409


def test_spotify_does_not_answer_a_callback(browser: TestClient, spotify_fake: FakeSpotify) -> None:
    """The page asks to come back later, and nothing is connected."""
    callback = spotify_fake.agree(consent_page(browser), "ann")
    spotify_fake.script(Answer.too_many_requests(retry_after="60"))
    assert outcome(browser, callback) == "/?spotify=try_later"
    assert browser.get("/playing").status_code == 409


def test_an_hour_later(
    browser: TestClient, spotify_fake: FakeSpotify, spotconn_user: UUID, spotconn_clock: FakeClock, spotconn_dsn: str
) -> None:
    """The token has ended and is refreshed, once."""
    sign_in(browser, spotconn_user)
    spotify_fake.on("GET", PLAYING, Answer(status=204))
    later(3600, spotconn_clock, spotconn_dsn)
    assert browser.get("/playing").json() == browser.get("/playing").json() == {"title": None}
    assert spotify_fake.refresh_calls == 1


def test_a_callback_in_the_browser_of_somebody_else(
    browser: TestClient, spotify_fake: FakeSpotify, spotconn_dsn: str
) -> None:
    """What one user has begun and agreed to connects nobody who is lured to its URL."""
    callback = spotify_fake.agree(consent_page(browser), "ann")
    sign_in(browser, asyncio.run(add_user(spotconn_dsn)))
    assert outcome(browser, callback) == "/?spotify=state_mismatch"
    assert browser.get("/playing").status_code == 409


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer(status=204), 200),
        (Answer.web_error(401, "Permissions missing"), 409),
        (Answer.web_error(403, "Insufficient client scope"), 409),
        (Answer.too_many_requests(retry_after="7"), 503),
    ],
)
def test_answers_of_the_web_api(
    browser: TestClient, spotify_fake: FakeSpotify, spotconn_user: UUID, answer: Answer, status: int
) -> None:
    """Whatever Spotify answers, the service has one of its own."""
    sign_in(browser, spotconn_user)
    spotify_fake.on("GET", PLAYING, answer)
    assert browser.get("/playing").status_code == status


class TestPlaying(unittest.TestCase):
    """The same fixtures in a class of unittest."""

    @pytest.fixture(autouse=True)
    def _use(self, browser: TestClient) -> None:
        self.browser = browser

    def test_a_stranger(self) -> None:
        """A user who has never connected is asked to."""
        self.assertEqual(self.browser.get("/playing").status_code, 409)  # noqa: PT009  as unittest has it
