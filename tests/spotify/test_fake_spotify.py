"""FakeSpotify behaves as Spotify does: consent, codes, both kinds of client, rotation, ends of tokens."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from spotconn import ConfigurationError, ConnectFailed, ReauthorizationRequired, SpotifyAccounts, SpotifyUnavailable
from spotconn._spotify.authorization import code_challenge, new_code_verifier
from spotconn.testing import Answer, FakeClock, FakeSpotify

REDIRECT = "http://127.0.0.1:8000/callback"
MONTH = 31 * 24 * 3600
SECRETS = {"demo-client": "demo-secret", "second": "second-secret", "public": None}
"""Of the three apps of `apps`."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_800_000_000.0)


@pytest.fixture
def fake(clock: FakeClock) -> FakeSpotify:
    made = FakeSpotify(clock=clock)
    made.add_account("ann", display_name="<Ann>", email="ann@example.com")
    made.add_account("ben", refusal="User not registered in the Developer Dashboard")
    return made


@pytest.fixture
async def browser(fake: FakeSpotify) -> AsyncIterator[httpx.AsyncClient]:
    """What a browser would do, in-process."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=fake), base_url="https://spotify.test") as client:
        yield client


def _accounts(browser: httpx.AsyncClient, clock: FakeClock, secret: str | None = "demo-secret") -> SpotifyAccounts:
    return SpotifyAccounts("demo-client", secret, http=browser, clock=clock)


async def _consent(browser: httpx.AsyncClient, accounts: SpotifyAccounts, verifier: str, **form: str) -> dict[str, Any]:
    """Open the consent page, send its form, and return the query of the callback."""
    scopes = ["user-read-email"]
    challenge = code_challenge(verifier)
    url = accounts.authorize_url(redirect_uri=REDIRECT, scopes=scopes, state='s"1', code_challenge=challenge)
    page = await browser.get(url)
    assert page.status_code == 200
    hidden = re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', page.text.replace("&quot;", "'"))
    fields = {name: value.replace("'", '"') for name, value in hidden}
    answer = await browser.post("/authorize", data=fields | form)
    assert answer.status_code == 302
    assert answer.headers["location"].startswith(f"{REDIRECT}?")
    return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}


@pytest.mark.parametrize("secret", ["demo-secret", None])
async def test_consent_code_tokens_profile(browser: httpx.AsyncClient, clock: FakeClock, secret: str | None) -> None:
    """Both kinds of client get from the consent page to tokens and a profile; a code works once."""
    accounts, verifier = _accounts(browser, clock, secret), new_code_verifier()
    callback = await _consent(browser, accounts, verifier, account="ann", decision="agree")
    assert callback["state"] == 's"1'
    grant = await accounts.exchange_code(callback["code"], redirect_uri=REDIRECT, code_verifier=verifier)
    assert grant.scope == frozenset({"user-read-email"})
    assert grant.expires_at == datetime.fromtimestamp(clock.now + 3600, UTC)
    profile = await accounts.profile(grant.access_token)
    assert (profile.spotify_user_id, profile.display_name, profile.email) == ("ann", "<Ann>", "ann@example.com")
    with pytest.raises(ConnectFailed, match="Invalid authorization code"):
        await accounts.exchange_code(callback["code"], redirect_uri=REDIRECT, code_verifier=verifier)


async def test_cancel_is_access_denied(browser: httpx.AsyncClient, clock: FakeClock) -> None:
    """Cancel comes back as access_denied with the state."""
    callback = await _consent(browser, _accounts(browser, clock), new_code_verifier(), decision="cancel")
    assert callback == {"error": "access_denied", "state": 's"1'}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wait": 601}, "Authorization code expired"),
        ({"redirect_uri": "https://else.test"}, "Invalid redirect URI"),
        ({"code_verifier": "x" * 43}, "code_verifier was incorrect"),
    ],
)
async def test_a_code_is_bound(
    browser: httpx.AsyncClient, clock: FakeClock, change: dict[str, Any], words: str
) -> None:
    """A code is bound to ten minutes, its redirect URI and its verifier."""
    accounts, verifier = _accounts(browser, clock), new_code_verifier()
    callback = await _consent(browser, accounts, verifier, account="ann", decision="agree")
    clock.step(change.pop("wait", 0))
    arguments: dict[str, Any] = {"redirect_uri": REDIRECT, "code_verifier": verifier} | change
    with pytest.raises(ConnectFailed, match=words):
        await accounts.exchange_code(callback["code"], **arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"client_id": "other"}, "Invalid client"),
        ({"redirect_uri": "http://127.0.0.1:8000/else"}, "Invalid redirect URI"),
        ({"redirect_uri": "http://localhost:8000/callback"}, "Invalid redirect URI"),
        ({"redirect_uri": "http://[::1/callback"}, "Invalid redirect URI"),
        ({"response_type": "token"}, "response_type"),
        ({"code_challenge": "x", "code_challenge_method": "plain"}, "S256"),
    ],
)
async def test_a_wrong_request_never_redirects(browser: httpx.AsyncClient, change: dict[str, str], words: str) -> None:
    """A wrong client, redirect URI or response type is an error page, also on the form's way back."""
    query = {"client_id": "demo-client", "redirect_uri": REDIRECT, "response_type": "code"} | change
    for answer in (await browser.get("/authorize", params=query), await browser.post("/authorize", data=query)):
        assert answer.status_code == 400
        assert words in answer.text


async def test_the_consent_page_escapes(browser: httpx.AsyncClient) -> None:
    """Names and parameters are text on the page, not markup."""
    query = {"client_id": "demo-client", "redirect_uri": REDIRECT, "response_type": "code", "state": '"><script>'}
    page = (await browser.get("/authorize", params=query)).text
    assert "&lt;Ann&gt;" in page
    assert "<script>" not in page


async def test_a_wrong_client_is_refused(browser: httpx.AsyncClient, clock: FakeClock, fake: FakeSpotify) -> None:
    """A wrong id or secret, or a secret where the app has none, is invalid_client and counts no refresh."""
    grant = fake.authorize("ann")
    public = FakeSpotify(client_secret=None)
    cases = [
        SpotifyAccounts("other", "demo-secret", http=browser),
        SpotifyAccounts("demo-client", "wrong", http=browser),
        SpotifyAccounts("other", http=browser),
    ]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=public)) as client:
        for accounts in (*cases, SpotifyAccounts("demo-client", "any", http=client)):
            with pytest.raises(ConfigurationError, match="invalid_client"):
                await accounts.refresh(grant.refresh_token or "")
    assert not fake.refreshes
    odd = [await browser.post("/api/token", headers={"authorization": value}) for value in ("Basic !", "Bearer x")]
    assert [answer.status_code for answer in odd] == [400, 400]


async def test_an_unknown_grant_type_is_refused(browser: httpx.AsyncClient) -> None:
    """A grant type that the service does not have is unsupported_grant_type."""
    answer = await browser.post("/api/token", data={"client_id": "demo-client", "grant_type": "password"})
    assert answer.json()["error"] == "unsupported_grant_type"


async def test_rotation_off_keeps_the_refresh_token(
    browser: httpx.AsyncClient, clock: FakeClock, fake: FakeSpotify
) -> None:
    """Without rotation a refresh gives no new refresh token and the old one stays good."""
    first = fake.authorize("ann", ["user-read-email"]).refresh_token or ""
    accounts = _accounts(browser, clock)
    for _ in range(2):
        grant = await accounts.refresh(first)
        assert grant.refresh_token is None
        assert fake.accepts(grant.access_token)
    assert fake.refreshes["ann"] == fake.refresh_calls == fake.token_calls == 2


async def test_rotation_makes_refresh_tokens_single_use(clock: FakeClock) -> None:
    """With rotation a refresh token that was used is revoked, and the new one works."""
    fake = FakeSpotify(rotation=True, clock=clock)
    fake.add_account("ann")
    first = fake.authorize("ann").refresh_token or ""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=fake)) as client:
        accounts = _accounts(client, clock)
        second = (await accounts.refresh(first)).refresh_token
        assert second
        assert fake.accepts_refresh(second)
        with pytest.raises(ReauthorizationRequired) as raised:
            await accounts.refresh(first)
    assert raised.value.reason == "invalid"


async def test_refresh_tokens_end_after_six_months(
    browser: httpx.AsyncClient, clock: FakeClock, fake: FakeSpotify
) -> None:
    """Six months after the authorization the refresh token has expired, also if it was used."""
    refresh_token = fake.authorize("ann").refresh_token or ""
    clock.step(5 * MONTH)
    assert fake.accepts_refresh(refresh_token)
    await _accounts(browser, clock).refresh(refresh_token)
    clock.step(MONTH)
    assert not fake.accepts_refresh(refresh_token)
    with pytest.raises(ReauthorizationRequired) as raised:
        await _accounts(browser, clock).refresh(refresh_token)
    assert raised.value.reason == "invalid", "the text of Spotify does not tell"


async def test_revoking_ends_refreshes_and_not_access_tokens(
    browser: httpx.AsyncClient, clock: FakeClock, fake: FakeSpotify
) -> None:
    """A revoked app cannot refresh; an access token handed out works until it expires."""
    grant = fake.authorize("ann")
    fake.revoke("ann")
    assert fake.accepts(grant.access_token)
    with pytest.raises(ReauthorizationRequired, match="connect"):
        await _accounts(browser, clock).refresh(grant.refresh_token or "")
    clock.step(3600)
    assert not fake.accepts(grant.access_token)


async def test_the_profile_refuses_as_the_web_api_does(
    browser: httpx.AsyncClient, clock: FakeClock, fake: FakeSpotify
) -> None:
    """401 in its three wordings, 403 as plain text, and no email without its scope."""
    grant, rejected = fake.authorize("ann"), fake.authorize("ann")
    fake.reject_access_token(rejected.access_token)
    assert "email" not in (await browser.get("/v1/me", headers=_bearer(grant.access_token))).json()
    assert (await browser.get("/v1/me")).json()["error"]["message"] == "No token provided"
    answer = await browser.get("/v1/me", headers=_bearer(rejected.access_token))
    assert answer.json()["error"] == {"status": 401, "message": "Invalid access token"}
    clock.step(3600)
    answer = await browser.get("/v1/me", headers=_bearer(grant.access_token))
    assert answer.json()["error"]["message"] == "The access token expired"
    refused = await browser.get("/v1/me", headers=_bearer(fake.authorize("ben").access_token))
    assert (refused.status_code, refused.text) == (403, "User not registered in the Developer Dashboard")


def _bearer(access_token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {access_token}"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer.too_many_requests("7200"), "429"),
        (Answer.too_many_requests(), "429"),
        (Answer.unavailable(502), "502"),
        (Answer.truncated(), "unreadable"),
        (Answer.reset(), "RemoteProtocolError"),
        (Answer.black_hole(), "within 2 s"),
        (Answer(status=500, delay=0.01), "500"),
    ],
    ids=["429-seconds", "429", "502", "truncated", "reset", "black-hole", "delayed"],
)
async def test_scripted_answers_over_a_real_server(fake: FakeSpotify, answer: Answer, words: str) -> None:
    """Each scripted answer reaches a real client as what it is; then the service is itself again."""
    refresh_token = fake.authorize("ann").refresh_token or ""
    async with (
        fake.serve() as url,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as another,
    ):
        fake.script(*[answer] * 10)
        with pytest.raises(SpotifyUnavailable) as raised:
            await accounts.refresh(refresh_token, timeout=2)
        fake._script.clear()
        assert fake.accepts((await another.refresh(refresh_token)).access_token)  # one that was not asked to wait
    assert words in str(raised.value)


async def test_a_held_answer_does_not_keep_the_server_from_closing(fake: FakeSpotify) -> None:
    """A server that is closed while it holds an answer cuts the connection."""
    refresh_token = fake.authorize("ann").refresh_token or ""
    with fake.hold(before=True) as held:
        async with fake.serve() as url:
            accounts = SpotifyAccounts("demo-client", "demo-secret", accounts_url=url)
            refreshing = asyncio.create_task(accounts.refresh(refresh_token, timeout=5))
            await held.reached()
        with pytest.raises(SpotifyUnavailable):
            await refreshing
        await accounts.aclose()
    assert not fake.refreshes


async def test_two_servers_do_not_share_a_port(fake: FakeSpotify) -> None:
    """Each server has a port of its own, and it is free again afterwards."""
    async with fake.serve() as one, fake.serve() as two:
        assert one != two
    async with fake.serve(int(one.rpartition(":")[2])) as again:
        assert again == one


async def test_a_refresh_token_is_named_revoked_only_if_it_was_good_once(
    browser: httpx.AsyncClient, clock: FakeClock, fake: FakeSpotify
) -> None:
    """A token that was never given out is invalid, and a call without one is a bug in the client."""
    with pytest.raises(ReauthorizationRequired) as raised:
        await _accounts(browser, clock).refresh("never-given-out")
    assert raised.value.reason == "invalid"
    answer = await browser.post("/api/token", data={"client_id": "demo-client", "grant_type": "refresh_token"})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert not fake.refreshes


async def _code(browser: httpx.AsyncClient, **query: str) -> str:
    """A code for ann, without looking at the page."""
    form = {"client_id": "demo-client", "redirect_uri": REDIRECT, "response_type": "code"} | query
    answer = await browser.post("/authorize", data=form | {"account": "ann", "decision": "agree"})
    return parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]


@pytest.mark.parametrize(
    ("query", "verifier", "error"),
    [
        ({}, "v" * 43, "invalid_request"),
        ({"code_challenge": ""}, "v" * 43, "invalid_request"),
        ({"code_challenge": code_challenge("short")}, "short", "invalid_grant"),
        ({"code_challenge": code_challenge("v" * 129)}, "v" * 129, "invalid_grant"),
        ({"code_challenge": code_challenge("v" * 42 + "!")}, "v" * 42 + "!", "invalid_grant"),
    ],
    ids=["no-challenge", "empty-challenge", "short", "long", "character"],
)
async def test_a_public_client_needs_a_challenge(
    browser: httpx.AsyncClient, query: dict[str, str], verifier: str, error: str
) -> None:
    """A code that was requested without a challenge gives no tokens to a client without a secret."""
    query = query | ({"code_challenge_method": "S256"} if query else {})
    code = await _code(browser, **query)
    form = {"client_id": "demo-client", "grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT}
    answer = await browser.post("/api/token", data=form | {"code_verifier": verifier})
    assert (answer.status_code, answer.json()["error"]) == (400, error)


@pytest.mark.parametrize(
    ("registered", "used", "status"),
    [
        ("https://app.test/back", "https://app.test/back", 200),
        ("https://app.test/back", "https://app.test:8443/back", 400),
        ("http://127.0.0.1/back", "http://127.0.0.1:49152/back", 200),
        ("http://[::1]/back", "http://[::1]:49152/back", 200),
        ("http://127.0.0.1:8000/back", "http://127.0.0.1:8001/back", 400),
        ("http://127.0.0.1/back", "http://127.0.0.1:8000/back?more", 400),
        ("http://127.0.0.1/back", "http://user@127.0.0.1:8000/back", 400),
        ("http://localhost/back", "http://localhost/back", 400),
        ("http://app.test/back", "http://app.test/back", 400),
    ],
)
async def test_redirect_uris_follow_spotifys_rules(registered: str, used: str, status: int) -> None:
    """Exactly as registered; only a loopback address registered without a port may add one."""
    fake = FakeSpotify(redirect_uris=[registered])
    query = {"client_id": "demo-client", "redirect_uri": used, "response_type": "code"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=fake), base_url="https://spotify.test") as client:
        assert (await client.get("/authorize", params=query)).status_code == status


async def test_a_redirect_uri_keeps_its_query() -> None:
    """The code is added to the query that a registered redirect URI has."""
    uri = "https://app.test/back?tenant=1"
    fake = FakeSpotify(redirect_uris=[uri])
    fake.add_account("ann")
    form = {"client_id": "demo-client", "redirect_uri": uri, "response_type": "code", "state": "s"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=fake), base_url="https://spotify.test") as client:
        answer = await client.post("/authorize", data=form | {"account": "ann", "decision": "agree"})
    query = parse_qs(urlsplit(answer.headers["location"]).query)
    assert (query["tenant"], query["state"], sorted(query)) == (["1"], ["s"], ["code", "state", "tenant"])


async def test_the_end_of_an_inner_hold_leaves_the_outer_one(
    browser: httpx.AsyncClient, clock: FakeClock, fake: FakeSpotify
) -> None:
    """Holds nest: a call made after the inner block is held by the outer one."""
    refresh_token = fake.authorize("ann").refresh_token or ""
    with fake.hold() as outer:
        with fake.hold():
            pass
        refreshing = asyncio.create_task(_accounts(browser, clock).refresh(refresh_token))
        async with asyncio.timeout(5):
            await outer.reached()
        assert not refreshing.done()
    assert fake.accepts((await refreshing).access_token)


def test_no_repr_shows_a_token(fake: FakeSpotify) -> None:
    """Neither the fake nor what it holds shows a token that it gave out."""
    grant, revoked = fake.authorize("ann"), fake.authorize("ben")
    fake.revoke("ben")
    shown = repr(fake) + repr(vars(fake)["_tokens"]) + repr(grant)
    assert not [
        token for token in (grant.access_token, grant.refresh_token, revoked.refresh_token) if str(token) in shown
    ]


@pytest.fixture
def apps(clock: FakeClock) -> FakeSpotify:
    """Three registered apps, the last of them a public client."""
    made = FakeSpotify(rotation=True, clock=clock, other_apps={"second": "second-secret", "public": None})
    made.add_account("ann")
    made.add_account("ben", refusal="User not registered in the Developer Dashboard")
    return made


@pytest.fixture
async def web(apps: FakeSpotify) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server."""
    async with apps.serve() as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def _token(
    web: httpx.AsyncClient, client_id: str, *, secret: str | None = None, **form: str
) -> tuple[int, dict[str, Any]]:
    """Call the token endpoint as an app, by default with its own secret, and return status and body."""
    secret = secret or SECRETS[client_id]
    auth = httpx.USE_CLIENT_DEFAULT if secret is None else httpx.BasicAuth(client_id, secret)
    answer = await web.post("/api/token", data=form | ({"client_id": client_id} if secret is None else {}), auth=auth)
    return answer.status_code, answer.json()


async def _refresh(web: httpx.AsyncClient, client_id: str, refresh_token: str | None) -> tuple[int, dict[str, Any]]:
    return await _token(web, client_id, grant_type="refresh_token", refresh_token=refresh_token or "")


def _invalid_grant(description: str) -> tuple[int, dict[str, Any]]:
    return 400, {"error": "invalid_grant", "error_description": description}


@pytest.mark.parametrize("client_id", SECRETS)
async def test_each_app_gets_tokens(web: httpx.AsyncClient, apps: FakeSpotify, client_id: str) -> None:
    """From the consent page over a code to tokens of its own, which it refreshes, and a profile."""
    url = str(web.base_url)
    async with SpotifyAccounts(client_id, SECRETS[client_id], accounts_url=url, api_url=url) as accounts:
        verifier = new_code_verifier()
        callback = await _consent(web, accounts, verifier, account="ann", decision="agree")
        first = await accounts.exchange_code(callback["code"], redirect_uri=REDIRECT, code_verifier=verifier)
        second = await accounts.refresh(first.refresh_token or "")
        third = await accounts.refresh(second.refresh_token or "")
        assert (await accounts.profile(third.access_token)).spotify_user_id == "ann"
    assert [app for app in SECRETS if apps.consents("ann", client_id=app)] == [client_id]


async def test_a_code_of_another_app_is_invalid_and_not_spent(web: httpx.AsyncClient) -> None:
    """Only the app that asked for a code gets tokens for it, also after another one has tried."""
    challenge = {"code_challenge": code_challenge("v" * 43), "code_challenge_method": "S256"}
    code = await _code(web, client_id="second", **challenge)
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT, "code_verifier": "v" * 43}
    for other in ("demo-client", "public"):
        assert await _token(web, other, **form) == _invalid_grant("Invalid authorization code")
    assert (await _token(web, "second", **form))[0] == 200
    assert await _token(web, "second", **form) == _invalid_grant("Invalid authorization code")


async def test_a_refresh_token_of_another_app_is_invalid_and_stays_good(
    web: httpx.AsyncClient, apps: FakeSpotify
) -> None:
    """The other app's call is no refresh, rotates nothing and ends nothing; it is counted as a call of that app."""
    refresh_token = apps.authorize("ann", client_id="second").refresh_token or ""
    for other in ("demo-client", "public"):
        assert await _refresh(web, other, refresh_token) == _invalid_grant("Invalid refresh token")
    assert apps.accepts_refresh(refresh_token)
    assert not apps.refreshes
    assert (await _refresh(web, "second", refresh_token))[0] == 200
    assert apps.refreshes == {"ann": 1}
    assert apps.refresh_calls_by_app == {"demo-client": 1, "public": 1, "second": 1}
    assert apps.refresh_calls == 3


async def test_only_its_app_learns_that_a_refresh_token_has_ended(
    web: httpx.AsyncClient, apps: FakeSpotify, clock: FakeClock
) -> None:
    """For another app, a token that is revoked or expired is as invalid as any other."""
    revoked, expired = apps.authorize("ann"), apps.authorize("ben")
    apps.revoke("ann")
    clock.step(7 * MONTH)
    for grant, words in ((revoked, "Refresh token revoked"), (expired, "Refresh token expired")):
        assert await _refresh(web, "demo-client", grant.refresh_token) == _invalid_grant(words)
        assert await _refresh(web, "second", grant.refresh_token) == _invalid_grant("Invalid refresh token")


@pytest.mark.parametrize(
    ("client_id", "secret", "words"),
    [
        ("second", "demo-secret", "Invalid client secret"),
        ("demo-client", "second-secret", "Invalid client secret"),
        ("public", "second-secret", "Invalid client secret"),
        ("unknown", "second-secret", "Invalid client"),
    ],
)
async def test_a_secret_is_that_of_the_app_named(
    web: httpx.AsyncClient, apps: FakeSpotify, client_id: str, secret: str, words: str
) -> None:
    """The secret of another registered app is as wrong as any; the call is counted for the app named."""
    grant = apps.authorize("ann", client_id="second")
    form = {"grant_type": "refresh_token", "refresh_token": grant.refresh_token or ""}
    status, body = await _token(web, client_id, secret=secret, **form)
    assert (status, body) == (400, {"error": "invalid_client", "error_description": words})
    assert apps.refresh_calls_by_app == {client_id: 1}
    assert not apps.refreshes


async def test_scripted_and_nameless_calls_are_counted_by_app(web: httpx.AsyncClient, apps: FakeSpotify) -> None:
    """A call that gets a scripted answer counts too, one that names no app as that of "", and no code exchange."""
    apps.script(Answer.unavailable())
    answers = [
        await web.post("/api/token", data={"grant_type": "refresh_token"} | named)
        for named in ({"client_id": "public"}, {}, {"client_id": "public", "grant_type": "authorization_code"})
    ]
    assert [answer.status_code for answer in answers] == [503, 400, 400]
    assert apps.refresh_calls_by_app == {"public": 1, "": 1}


async def test_a_user_removes_one_app_or_all(web: httpx.AsyncClient, apps: FakeSpotify) -> None:
    """With a client id only the tokens of that app end, without one those of all; other users keep theirs."""
    tokens = {client_id: apps.authorize("ann", client_id=client_id).refresh_token or "" for client_id in SECRETS}
    other = apps.authorize("ben").refresh_token or ""
    apps.revoke("ann", client_id="second")
    assert [app for app in SECRETS if apps.accepts_refresh(tokens[app])] == ["demo-client", "public"]
    assert [app for app in SECRETS if apps.consents("ann", client_id=app)] == ["demo-client", "public"]
    assert await _refresh(web, "second", tokens["second"]) == _invalid_grant("Refresh token revoked")
    assert apps.consents("ann")
    apps.revoke("ann")
    assert not [app for app in SECRETS if apps.accepts_refresh(tokens[app])]
    assert not apps.consents("ann")
    assert apps.accepts_refresh(other)


async def test_an_account_is_refused_to_every_app(web: httpx.AsyncClient, apps: FakeSpotify) -> None:
    """The 403 of GET /v1/me belongs to the account; the other account has its profile by each app."""
    for client_id in SECRETS:
        refused = apps.authorize("ben", client_id=client_id)
        answer = await web.get("/v1/me", headers=_bearer(refused.access_token))
        assert (answer.status_code, answer.text) == (403, "User not registered in the Developer Dashboard")
        allowed = apps.authorize("ann", client_id=client_id)
        assert (await web.get("/v1/me", headers=_bearer(allowed.access_token))).status_code == 200


async def test_the_first_app_is_the_default(web: httpx.AsyncClient, apps: FakeSpotify) -> None:
    """A user authorizes the app of the argument `client_id` unless another is named."""
    refresh_token = apps.authorize("ann").refresh_token
    assert await _refresh(web, "second", refresh_token) == _invalid_grant("Invalid refresh token")
    assert (await _refresh(web, "demo-client", refresh_token))[0] == 200


def test_an_app_that_is_not_registered_is_an_error(apps: FakeSpotify) -> None:
    """A typing error in a test is told by the name of the argument, and one client id has one secret."""
    with pytest.raises(ValueError, match=r"^client_id: .*'secnod'"):
        apps.authorize("ann", client_id="secnod")
    with pytest.raises(ValueError, match=r"^client_id: .*'secnod'"):
        apps.revoke("ann", client_id="secnod")
    with pytest.raises(ValueError, match=r"^other_apps: "):
        FakeSpotify(other_apps={"demo-client": None})
