"""`SpotifyAccounts` against real HTTP servers on loopback sockets."""

import asyncio
import base64
import logging
import socket
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from spotconn._spotify.decoding import LARGEST_BODY
from spotconn.accounts import SpotifyAccounts
from spotconn.errors import (
    ConfigurationError,
    ConnectFailed,
    ReauthorizationRequired,
    SpotconnError,
    SpotifyUnavailable,
)
from spotconn.models import TokenGrant
from support.upstream import CUT, Upstream, answer, upstream

GRANT = {"access_token": "granted-at", "token_type": "Bearer", "expires_in": 3600, "scope": "b a"}
PROFILE = {"id": "ada", "display_name": "Ada", "email": "ada@example.org"}
BACK = "https://example.org/back"
AMPLE, BRIEF = 10, 0.2
SECRETS = ["secret-rt", "secret-code", "secret-verifier", "secret-at", "app-secret", "granted-at", "body-secret"]


@asynccontextmanager
async def spotify(
    *script: bytes, secret: str | None = "app-secret", **options: Any
) -> AsyncGenerator[tuple[SpotifyAccounts, Upstream]]:
    async with (
        upstream(*script) as served,
        SpotifyAccounts("app", secret, accounts_url=served.url, api_url=served.url, **options) as accounts,
    ):
        yield accounts, served


def exchange(accounts: SpotifyAccounts, timeout: float = AMPLE) -> Coroutine[Any, Any, TokenGrant]:
    return accounts.exchange_code("secret-code", redirect_uri=BACK, code_verifier="secret-verifier", timeout=timeout)


Call = Callable[[SpotifyAccounts, float], Coroutine[Any, Any, object]]
CALLS: dict[str, Call] = {
    "refresh": lambda accounts, timeout: accounts.refresh("secret-rt", timeout=timeout),
    "exchange": exchange,
    "profile": lambda accounts, timeout: accounts.profile("secret-at", timeout=timeout),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


async def test_a_confidential_refresh() -> None:
    """A confidential client proves itself by HTTP Basic, and its secret is nowhere else."""
    async with spotify(answer(200, GRANT), clock=lambda: 1000.0) as (accounts, served):
        grant = await accounts.refresh("secret-rt")
    assert (grant.access_token, grant.refresh_token, grant.scope) == ("granted-at", None, frozenset("ab"))
    assert grant.expires_at.timestamp() == 4600
    [(line, headers, _)] = served.requests
    assert line == "POST /api/token HTTP/1.1"
    assert headers["authorization"] == "Basic " + base64.b64encode(b"app:app-secret").decode()
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert served.form == {"grant_type": ["refresh_token"], "refresh_token": ["secret-rt"]}


@every_call
async def test_a_proxy_of_the_environment_sees_no_plain_http(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLS a proxy would read secrets and tokens, so requests to this host go directly."""
    async with upstream(answer(200, GRANT | PROFILE)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        async with spotify(answer(200, GRANT | PROFILE)) as (accounts, served):
            await call(accounts, AMPLE)
    assert (len(served.requests), len(proxy.requests)) == (1, 0)


async def test_a_public_refresh() -> None:
    """A public client names itself in the body and sends no Authorization header."""
    async with spotify(answer(200, GRANT), secret=None) as (accounts, served):
        await accounts.refresh("secret-rt")
    assert "authorization" not in served.requests[0][1]
    assert served.form == {"grant_type": ["refresh_token"], "refresh_token": ["secret-rt"], "client_id": ["app"]}


@pytest.mark.parametrize("secret", ["app-secret", None])
async def test_a_code_exchange(secret: str | None) -> None:
    """A code exchange sends the code, its redirect URI and the PKCE verifier, with or without a secret."""
    async with spotify(answer(200, {**GRANT, "refresh_token": "rt"}), secret=secret) as (accounts, served):
        grant = await exchange(accounts)
    assert grant.refresh_token == "rt"
    client_id = {} if secret else {"client_id": ["app"]}
    assert served.form == {
        "grant_type": ["authorization_code"],
        "code": ["secret-code"],
        "redirect_uri": [BACK],
        "code_verifier": ["secret-verifier"],
        **client_id,
    }


async def test_a_profile() -> None:
    """The profile is read with the access token alone, never with the app's secret."""
    async with spotify(answer(200, PROFILE)) as (accounts, served):
        profile = await accounts.profile("secret-at")
    assert (profile.spotify_user_id, profile.display_name, profile.email) == ("ada", "Ada", "ada@example.org")
    [(line, headers, _)] = served.requests
    assert line == "GET /v1/me HTTP/1.1"
    assert headers["authorization"] == "Bearer secret-at"


async def test_the_authorize_url() -> None:
    """The authorize URL is built for this app without asking anybody."""
    async with SpotifyAccounts("app") as accounts:
        url = accounts.authorize_url(redirect_uri=BACK, scopes=["a"], state="s", code_challenge="c", show_dialog=True)
    assert url.startswith("https://accounts.spotify.com/authorize?")
    query = parse_qs(urlsplit(url).query)
    assert (query["client_id"], query["show_dialog"], query["state"]) == (["app"], ["true"], ["s"])


FINAL: list[tuple[str, bytes, type[SpotconnError]]] = [
    ("refresh", answer(400, {"error": "invalid_grant"}), ReauthorizationRequired),
    ("exchange", answer(400, {"error": "invalid_grant"}), ConnectFailed),
    ("refresh", answer(400, {"error": "invalid_client"}), ConfigurationError),
    ("exchange", answer(400, {"error": "invalid_request"}), ConfigurationError),
    ("profile", answer(401, {"error": {"status": 401}}), ConnectFailed),
    ("profile", answer(403, "User not registered in the Developer Dashboard"), ConnectFailed),
]


@pytest.mark.parametrize(("call", "script", "expected"), FINAL)
async def test_a_final_answer(call: str, script: bytes, expected: type[SpotconnError]) -> None:
    """A request whose answer would be the same again is sent once."""
    async with spotify(script) as (accounts, served):
        with pytest.raises(expected):
            await CALLS[call](accounts, AMPLE)
    assert len(served.requests) == 1


PASSING = {
    "500": answer(500),
    "502 HTML": answer(502, "<html>bad gateway</html>"),
    "503 text": answer(503, "upstream connect error or disconnect/reset before headers"),
    "504": answer(504),
    "429": answer(429, "Too many requests"),
    "429 now": answer(429, "Too many requests", Retry_After="0"),
}
LOST = {
    "cut before the answer": CUT,
    "cut within the body": answer(200, GRANT)[:-10],
    "no HTTP": b"SSH-2.0-OpenSSH\r\n",
    "empty": answer(200),
    "HTML": answer(200, "<html>hello</html>"),
    "redirect": answer(302, Location="/elsewhere"),
    "too large": answer(200, b" " * (LARGEST_BODY + 1)),
    "broken gzip": answer(200, b"no gzip", Content_Encoding="gzip"),
}


@pytest.mark.parametrize("script", PASSING.values(), ids=PASSING)
@every_call
async def test_trouble_that_passes(call: Call, script: bytes) -> None:
    """Every call outlives an answer with which Spotify did nothing."""
    async with spotify(script, answer(200, {**GRANT, **PROFILE})) as (accounts, served):
        await call(accounts, AMPLE)
    assert len(served.requests) == 2


@pytest.mark.parametrize("script", LOST.values(), ids=LOST)
@pytest.mark.parametrize("call", [CALLS["refresh"], CALLS["profile"]], ids=["refresh", "profile"])
async def test_a_lost_answer(call: Call, script: bytes) -> None:
    """A call that may be repeated outlives an answer that was lost or unreadable."""
    async with spotify(script, answer(200, {**GRANT, **PROFILE})) as (accounts, served):
        await call(accounts, AMPLE)
    assert len(served.requests) == 2


@pytest.mark.parametrize("script", LOST.values(), ids=LOST)
async def test_a_lost_answer_to_a_code(script: bytes) -> None:
    """A code that Spotify may have used is not sent again."""
    async with spotify(script) as (accounts, served):
        with pytest.raises(SpotifyUnavailable):
            await exchange(accounts)
    assert len(served.requests) == 1


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """A socket that holds a port and does not listen: connections are refused."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@every_call
async def test_nobody_listens(call: Call, deaf: socket.socket) -> None:
    """A refused connection is the network's fault, not Spotify's."""
    url = url_of(deaf)
    async with SpotifyAccounts("app", accounts_url=url, api_url=url) as accounts:
        with pytest.raises(SpotifyUnavailable, match="no answer from") as raised:
            await call(accounts, BRIEF)
    assert (raised.value.answered, raised.value.retry_after) == (False, None)


async def test_a_code_waits_for_the_server(deaf: socket.socket) -> None:
    """A code is sent as soon as somebody listens: nothing was used up before."""
    served = Upstream(answer(200, GRANT))
    async with SpotifyAccounts("app", accounts_url=url_of(deaf)) as accounts:
        exchanging = asyncio.create_task(exchange(accounts))
        await asyncio.sleep(0.1)
        async with await asyncio.start_server(served._serve, sock=deaf):
            await exchanging
        await served.close()
    assert len(served.requests) == 1


@every_call
async def test_the_deadline(call: Call) -> None:
    """A server that never answers holds a call no longer than its deadline."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = url_of(silent)
        async with SpotifyAccounts("app", accounts_url=url, api_url=url) as accounts:
            started = time.monotonic()
            with pytest.raises(SpotifyUnavailable, match=r"within 0\.2 s$") as raised:
                await call(accounts, BRIEF)
    assert 0.15 < time.monotonic() - started < 5
    assert not raised.value.answered


async def test_the_deadline_spans_all_attempts() -> None:
    """Retries go on until the deadline and end with it."""
    async with spotify(answer(503)) as (accounts, served):
        started = time.monotonic()
        with pytest.raises(SpotifyUnavailable):
            await accounts.refresh("secret-rt", timeout=2)
    assert time.monotonic() - started < 3
    assert len(served.requests) > 1


@every_call
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_retry_after_beyond_the_deadline(call: Call, form: str) -> None:
    """The call does not wait for an attempt that would come too late; the error says when to try again."""
    wait = "13749" if form == "seconds" else formatdate(time.time() + 13749, usegmt=True)
    async with spotify(answer(429, Retry_After=wait)) as (accounts, served):
        started = time.monotonic()
        with pytest.raises(SpotifyUnavailable) as raised:
            await call(accounts, AMPLE)
    assert time.monotonic() - started < 5
    assert len(served.requests) == 1
    assert raised.value.retry_after == pytest.approx(13749, abs=5)


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_retry_after_within_the_deadline(form: str) -> None:
    """The next attempt comes no sooner than Spotify asked."""
    started = time.monotonic()
    wait = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    async with spotify(answer(429, Retry_After=wait), answer(200, GRANT)) as (accounts, served):
        await accounts.refresh("secret-rt")
    assert 0.9 < time.monotonic() - started < 5
    assert len(served.requests) == 2


async def test_cancellation() -> None:
    """A cancelled call ends as cancelled, and the client still works."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = url_of(silent)
        async with SpotifyAccounts("app", accounts_url=url) as accounts:
            task = asyncio.create_task(accounts.refresh("secret-rt"))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(SpotifyUnavailable):
                await accounts.refresh("secret-rt", timeout=0.1)


async def test_no_cookie_is_kept() -> None:
    """A cookie set in one user's answer is not sent with the next user's request."""
    async with spotify(answer(200, GRANT, Set_Cookie="sp=1; Path=/")) as (accounts, served):
        await accounts.refresh("one")
        await accounts.refresh("two")
    assert all("cookie" not in headers for _, headers, _ in served.requests)


async def test_a_given_client_stays_open(http_library: Any) -> None:
    """A client given to the constructor is used and left open, and its own manners do not apply."""
    async with http_library.AsyncClient(follow_redirects=True, auth=("other", "person")) as http:
        async with spotify(answer(200, GRANT), secret=None, http=http) as (accounts, served):
            await accounts.refresh("secret-rt")
        assert not http.is_closed
    assert "authorization" not in served.requests[0][1]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"client_id": ""}, "client_id"),
        ({"client_id": "app\n"}, "client_id"),
        ({"client_secret": ""}, "client_secret"),
        ({"client_secret": " s3cret"}, "client_secret"),
        ({"accounts_url": "http://accounts.example.org/s3cret"}, "accounts_url"),
        ({"api_url": "s3cret"}, "api_url"),
    ],
)
def test_malformed_arguments(arguments: dict[str, Any], name: str) -> None:
    """A malformed argument is named, and its value is not shown."""
    given: dict[str, Any] = {"client_id": "app"} | arguments
    with pytest.raises(ConfigurationError, match=rf"^{name} ") as raised:
        SpotifyAccounts(**given)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("secret", ["app-secret", None])
def test_repr(secret: str | None) -> None:
    """The repr shows the app and the kind of client, and no secret."""
    accounts = SpotifyAccounts("app", secret)
    kind = "confidential" if secret else "public"
    assert repr(accounts) == str(accounts) == f"<SpotifyAccounts client_id='app' {kind}>"


def everything_said(error: BaseException, log: str) -> str:
    return log + repr(error) + str(error) + repr(vars(error)) + "".join(traceback.format_exception(error))


REVEALING = {
    "cut": CUT,
    "garbled": b"HTTP/1.1 200 OK\r\njunk\r\n\r\n",
    "broken JSON": answer(200, '{"access_token":"body-secret",'),
    "unusable grant": answer(200, {**GRANT, "access_token": "body-secret", "expires_in": -1}),
    "invalid_grant": answer(400, {"error": "invalid_grant", "error_description": "body-secret"}),
    "invalid_client": answer(400, {"error": "invalid_client", "error_description": "body-secret"}),
    "other": answer(400, "body-secret"),
    "5xx": answer(500, "body-secret"),
}


@pytest.mark.parametrize("script", REVEALING.values(), ids=REVEALING)
@every_call
async def test_no_secret_is_told(call: Call, script: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """No error, nothing that it hangs on to, and no log line down to DEBUG holds a token, a code or a secret."""
    caplog.set_level(logging.DEBUG)
    async with spotify(script) as (accounts, _):
        with pytest.raises(SpotconnError) as raised:
            await call(accounts, BRIEF)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    said = everything_said(raised.value, caplog.text)
    assert [secret for secret in SECRETS if secret in said] == []


async def test_a_success_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The log of successful calls, down to DEBUG, holds no secret either."""
    caplog.set_level(logging.DEBUG)
    async with spotify(answer(200, {**GRANT, **PROFILE})) as (accounts, _):
        grants = [await call(accounts, AMPLE) for call in CALLS.values()]
    said = caplog.text + repr(grants)
    assert "api/token" in said
    assert [secret for secret in SECRETS if secret in said] == []
