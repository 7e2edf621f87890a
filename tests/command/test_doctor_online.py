"""The doctor asks Spotify about the apps, and of no user; without --online it says what it did not ask."""

import asyncio
import json
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spotconn import SpotifyUnavailable
from spotconn._command.clocks import spotify_clock_finding
from spotconn._command.doctor import examine
from spotconn._command.finding import Finding
from spotconn._command.online import spotify_findings
from spotconn._spotify.app_check import ask_about_app, clock_offset
from spotconn.cli import app
from spotconn.testing import Answer, FakeSpotify
from support.doctor import HEALTHY

PREMIUM = b"Active premium subscription required for the owner of the app. It can take a few hours."
QUOTA = {"error": {"status": 429, "message": "Too many requests", "reason": "QUOTA_EXCEEDED"}}
SEARCH = ("GET", "/v1/search")


@pytest.fixture
def spotify() -> FakeSpotify:
    """A Spotify with two apps."""
    return FakeSpotify(other_apps={"other-client": "other-secret"})


def environ(url: str, **changes: str) -> dict[str, str]:
    return {
        "SPOTIFY_CLIENT_ID": "demo-client",
        "SPOTIFY_CLIENT_SECRET": "demo-secret",
        "SPOTCONN_OTHER_APPS": "other-client:other-secret",
        "SPOTCONN_SPOTIFY_URL": url,
    } | changes


async def said(url: str, seconds: float = 60, /, **changes: str) -> list[tuple[str, str, str]]:
    """What is found of credentials and the Web API."""
    found = await spotify_findings(environ(url, **changes), timeout=seconds)
    return [(one.subject, one.state, one.text) for one in found if one.subject in {"credentials", "Web API"}]


async def test_each_app_is_asked_about(spotify: FakeSpotify) -> None:
    """Accepted and served apps are named in one line each; no user takes part."""
    async with spotify.serve() as url:
        found = await spotify_findings(environ(url))
    assert [(one.subject, one.state) for one in found] == [
        ("Spotify", "ok"),
        ("credentials", "ok"),
        ("Web API", "ok"),
        ("Spotify's clock", "ok"),
    ]
    assert found[0].text == f"a simulated one at {url}, of SPOTCONN_SPOTIFY_URL"
    assert found[1].text == "Spotify accepts id and secret of demo-client, other-client"
    assert found[2].text.startswith("serves demo-client, other-client; whether for each user, only a token of that")
    assert (spotify.token_calls, spotify.refresh_calls, dict(spotify.refreshes)) == (2, 0, {})


@pytest.mark.parametrize(
    ("changes", "stated"),
    [
        ({"SPOTIFY_CLIENT_SECRET": "marked"}, "of the app demo-client (invalid_client: Invalid client secret)"),
        ({"SPOTIFY_CLIENT_ID": "strange"}, "of the app strange (invalid_client: Invalid client)"),
        ({"SPOTCONN_OTHER_APPS": "other-client:marked"}, "of the app other-client (invalid_client: Invalid client s"),
    ],
)
async def test_refused_credentials_are_named(spotify: FakeSpotify, changes: dict[str, str], stated: str) -> None:
    """By their app and without the secret; the other app is accepted."""
    async with spotify.serve() as url:
        accepted, refused, served = await said(url, **changes)
    assert (accepted[:2], refused[:2], served[:2]) == (
        ("credentials", "ok"),
        ("credentials", "fail"),
        ("Web API", "ok"),
    )
    assert stated in refused[2]
    assert "marked" not in refused[2]


async def test_of_a_public_client_nothing_can_be_asked(spotify: FakeSpotify) -> None:
    """Which is said, and the other apps are asked about."""
    async with spotify.serve() as url:
        found = await said(url, SPOTIFY_CLIENT_SECRET="")
    assert found[1] == ("credentials", "skip", "cannot be asked for a public client, which has no secret: demo-client")
    assert [subject for subject, state, _ in found if state == "ok"] == ["credentials", "Web API"]


async def test_a_secret_is_read_from_its_file(spotify: FakeSpotify, tmp_path: Path) -> None:
    """As the service reads it."""
    for text, state in (("demo-secret", "ok"), ("marked", "fail")):
        (tmp_path / "secret").write_text(text)
        async with spotify.serve() as url:
            changes = {"SPOTIFY_CLIENT_SECRET": "", "SPOTIFY_CLIENT_SECRET_FILE": str(tmp_path / "secret")}
            found = await said(url, SPOTCONN_OTHER_APPS="", **changes)
        assert found[0][:2] == ("credentials", state)


@pytest.mark.parametrize(
    ("answer", "state", "text"),
    [
        (
            Answer(status=403, body=PREMIUM),
            "fail",
            "the Web API refuses this app: the account that owns it has no active Premium",
        ),
        (Answer(status=429, json=QUOTA), "fail", "the Web API refuses this app: its quota of requests is used up"),
        (Answer(status=403, body=b"in new words"), "fail", "the Web API refuses this app: in new words"),
        (Answer.too_many_requests("3600"), "warn", "Spotify answered with status 429"),
        (Answer(status=403, body=b"<html>of a gateway</html>"), "warn", "Spotify answered with status 403"),
    ],
)
async def test_a_web_api_that_does_not_serve_the_app(
    spotify: FakeSpotify, answer: Answer, state: str, text: str
) -> None:
    """One line for all apps, with the reason; a spent quota and a lapsed Premium are faults, a pause is none."""
    spotify.on(*SEARCH, answer)
    async with spotify.serve() as url:
        accepted, refused = await said(url, 4)  # half of it is for asking again
    assert accepted[:2] == ("credentials", "ok")
    assert refused[:2] == ("Web API", state)
    assert refused[2].startswith(text)
    assert refused[2].endswith("(demo-client, other-client)")


async def test_a_spotify_that_cannot_be_reached_is_one_line(spotify: FakeSpotify) -> None:
    """Not one for each app and each question; a simulated one has to be started."""
    async with spotify.serve() as url:
        pass
    (found,) = await spotify_findings(environ(url), timeout=4)
    assert (found.subject, found.state) == ("Spotify", "fail")
    assert found.text == f"no answer of a simulated one at {url}, of SPOTCONN_SPOTIFY_URL"
    assert found.remedy == "start it: spotconn simulate; for Spotify itself unset SPOTCONN_SPOTIFY_URL"


async def test_the_time_is_bounded(spotify: FakeSpotify) -> None:
    """Where Spotify never answers the question ends with an error that says so."""
    spotify.script(Answer.black_hole())
    async with spotify.serve() as url:
        answers = await ask_about_app("demo-client", "demo-secret", spotify_url=url, timeout=0.2)
    assert isinstance(answers.credentials, SpotifyUnavailable)
    assert not answers.credentials.answered
    assert answers.clock is None


async def test_a_wrong_clock_of_this_host_is_found(spotify: FakeSpotify) -> None:
    """By the Date header, also where the credentials are refused."""
    async with spotify.serve() as url:
        answers = await ask_about_app(
            "demo-client", "wrong", spotify_url=url, timeout=60, clock=lambda: time.time() - 3600
        )
    assert answers.credentials is not None
    assert answers.clock is not None
    found = spotify_clock_finding(answers.clock)
    assert (found.state, found.text.endswith("s ahead of this host")) == ("fail", True)
    assert float(found.text.split()[2]) == pytest.approx(3600, abs=30)


@pytest.mark.parametrize(
    ("ahead", "state"),
    [(0.0, "ok"), (1.4, "ok"), (-1.9, "ok"), (4.0, "warn"), (-5.0, "warn"), (15.0, "fail"), (-86_400.0, "fail")],
)
def test_whole_seconds_of_the_date_header_leave_room(ahead: float, state: str) -> None:
    """A header of whole seconds that is a second old is no wrong clock."""
    now = datetime(2026, 11, 30, 12, 0, 0, 900_000, tzinfo=UTC).timestamp()
    date = format_datetime(datetime.fromtimestamp(int(now + ahead), UTC), usegmt=True)
    offset = clock_offset({"date": date}, now - 0.1, now + 0.1)
    assert offset is not None
    assert spotify_clock_finding(offset).state == state


@pytest.mark.parametrize("headers", [{}, {"date": ""}, {"date": "yesterday"}])
def test_an_answer_without_a_date_tells_no_time(headers: dict[str, str]) -> None:
    """And is no fault."""
    assert clock_offset(headers, 0.0, 1.0) is None


async def of_settings(*, online: bool, **changes: str) -> dict[str, Finding]:
    """The findings with a database that cannot be reached."""
    settings = HEALTHY | {"DATABASE_URL": "postgresql://a@127.0.0.1:1/x"} | changes
    return {one.subject: one async for one in examine(settings, online=online)}


async def test_without_it_the_doctor_says_what_it_did_not_ask(spotify: FakeSpotify) -> None:
    """And sends nothing."""
    async with spotify.serve() as url:
        found = await of_settings(online=False, **environ(url))
    assert found["Spotify"].state == "skip"
    assert found["Spotify"].text == (
        f"a simulated one at {url}, of SPOTCONN_SPOTIFY_URL; not asked whether it accepts and serves each app, nor for "
        "the time; spotconn doctor --online asks"
    )
    assert spotify.token_calls == 0
    assert (await of_settings(online=False))["Spotify"].text.startswith("not asked whether")


@pytest.mark.parametrize(
    "changes",
    [
        {"SPOTIFY_CLIENT_ID": ""},
        {"SPOTCONN_SPOTIFY_URL": "http://marked.example"},
        {"SPOTIFY_CLIENT_SECRET": "", "SPOTIFY_CLIENT_SECRET_FILE": "/marked"},
    ],
)
async def test_wrong_settings_are_not_asked_about(changes: dict[str, str]) -> None:
    """The line of the variable fails; this one says that Spotify was not asked."""
    for online in (True, False):
        found = await of_settings(online=online, **changes)
        assert found["Spotify"].state == "skip"
        assert found["Spotify app"].state == "fail"
        assert ("file" in (found["Spotify app"].remedy or "")) == ("SPOTIFY_CLIENT_SECRET_FILE" in changes)
        assert "marked" not in repr(found)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "HTTPS_PROXY"])
async def test_what_no_service_could_start_with_fails(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """TLS and proxies, of which the other lines say nothing; nothing is sent."""
    monkeypatch.setenv(variable, "marked://marked")
    (found,) = await spotify_findings(HEALTHY)
    assert (found.subject, found.state) == ("Spotify", "fail")
    assert found.text.startswith(variable)
    assert "marked" not in repr(found)


async def test_the_command_asks_with_online(spotify: FakeSpotify) -> None:
    """Credentials that Spotify refuses end it with 1."""
    async with spotify.serve() as url:
        env = environ(url, SPOTIFY_CLIENT_SECRET="marked", DATABASE_URL="postgresql://a@127.0.0.1:1/x")
        env["SPOTCONN_DATABASE_URL"] = ""
        done = await asyncio.to_thread(lambda: CliRunner().invoke(app, ["doctor", "--online", "--json"], env=env))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 1
    assert [one["state"] for one in found if one["subject"] == "credentials"] == ["ok", "fail"]
    assert "marked" not in done.output
