"""The Flask example under gunicorn, and Django's test client, with one BlockingTokens for all threads and workers."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import django
import httpx
import pytest
from django.conf import settings as django_settings
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

from spotconn.blocking import BlockingTokens
from support.blocking_harness import Harness
from support.consent import agree

TESTS = Path(__file__).parents[1]
WORKERS, REQUESTS = 2, 40
urlpatterns: list[object] = []


@contextmanager
def gunicorn(socket: Path, *options: str, **settings: str) -> Generator[httpx.Client]:
    """Context manager: gunicorn with the service, and a client for it; it ends in good order."""
    folders = [str(TESTS), str(TESTS.parent / "examples"), *sys.path]
    process = subprocess.Popen(
        [
            *[sys.executable, "-m", "gunicorn", "--workers", str(WORKERS), "--threads", "4", "--no-control-socket"],
            *["--log-level", "error", "--bind", f"unix:{socket}", *options, "support.flask_service:app"],
        ],
        env=os.environ | settings | {"PYTHONPATH": os.pathsep.join(folders), "SECRET_KEY": "of a test"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not socket.exists():
            assert process.poll() is None
            time.sleep(0.02)
        transport = httpx.HTTPTransport(uds=str(socket))
        with httpx.Client(transport=transport, base_url="http://127.0.0.1:8000", timeout=60) as client:
            yield client
        process.terminate()
        _, complained = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in complained) == (0, False), complained
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.long
@pytest.mark.parametrize("preload", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_flask_service_under_gunicorn(harness: Harness, tmp_path: Path, *, preload: bool) -> None:
    """Two workers with four threads each, also where the service was used before the fork: every request has its
    user's token after one refresh for each user, and a user connects, is served and disconnects.
    """
    *users, with_other_scope = harness.connect(*[3600 if n % 2 else -5 for n in range(10)], 3600)
    [new] = harness.sql("insert into auth.users (email) values ('new') returning id")
    harness.spotify.add_account("alice", display_name="Alice")
    settings = {"DATABASE_URL": harness.dsn, "SPOTIFY_URL": harness.url}
    options = ["--preload"] if preload else []
    if preload:
        settings["WARM_UP"] = str(users[1])
    with gunicorn(tmp_path / "socket", *options, **settings) as client:
        asked = [users[n % len(users)] for n in range(REQUESTS)]
        with ThreadPoolExecutor(8) as threads:
            answers = [answer.json() for answer in threads.map(client.get, [f"/token/{user}" for user in asked])]
        stored = {user: harness.stored(user)["access_token"] for user in users}
        assert [answer["token"] for answer in answers] == [stored[user] for user in asked]
        assert all((answer["pid"] != answer["master"]) == preload for answer in answers)
        _use(client, harness, new["id"])
        _ask_for_more(client, harness, with_other_scope)
    assert harness.spotify.refresh_calls == 5
    assert set(harness.spotify.refreshes.values()) == {1}


def _use(client: httpx.Client, harness: Harness, user: UUID) -> None:
    """Go the way of a user through the service."""
    assert client.get("/profile").status_code == 401
    client.get(f"/sign-in/{user}")
    assert "Not connected" in client.get("/profile").text
    assert client.get("/top-tracks").status_code == 409
    callback = harness.loop.run(agree(client.post("/connect").headers["location"]))
    assert client.get(callback).headers["location"] == "/profile"
    assert client.get(callback).headers["location"] == "/profile"
    assert client.get(callback.replace("state=", "state=x")).status_code == 409
    page = client.get("/profile")
    assert "Connected to Spotify" in page.text
    assert (page.headers["cache-control"], page.headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert len(client.get("/top-tracks").json()) == 5
    client.post("/disconnect")
    assert "Not connected" in client.get("/profile").text


def _ask_for_more(client: httpx.Client, harness: Harness, user: UUID) -> None:
    """A call lacks a scope: the connect link asks for it, and for what was granted."""
    harness.sql("update public.spotify_connections set scope = 'streaming' where user_id = $1", user)
    client.get(f"/sign-in/{user}")
    assert client.get("/top-tracks").status_code == 409
    [scope] = parse_qs(urlsplit(client.post("/connect").headers["location"]).query)["scope"]
    assert {"streaming", "user-top-read"} < {*scope.split()}


def test_djangos_test_client(harness: Harness, tokens: BlockingTokens) -> None:
    """A view is served in the thread of the test, also by several threads; an async view is told what to await."""
    (user,) = harness.connect(-5)

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(tokens.get_valid_token(user))

    async def async_view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(tokens.get_valid_token(user))

    urlpatterns[:] = [path("sync", view), path("async", async_view)]
    if not django_settings.configured:
        django_settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"], SECRET_KEY="of a test")
        django.setup()
    with ThreadPoolExecutor(8) as threads:
        answers = {answer.content for answer in threads.map(Client().get, ["/sync"] * 8)}
    assert answers == {harness.stored(user)["access_token"].encode()}
    assert harness.spotify.refresh_calls == 1
    with pytest.raises(RuntimeError, match="await a TokenManager there"):
        asyncio.run(AsyncClient().get("/async"))
