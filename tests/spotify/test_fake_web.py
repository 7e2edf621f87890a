"""The simulated Web API and the pages that a person sees."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from spotconn.testing import FakeSpotify


@pytest.fixture
async def client(spotify: FakeSpotify) -> AsyncIterator[httpx.AsyncClient]:
    """In-process."""
    spotify.add_account("alice", display_name="<Alice & Co>")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=spotify), base_url="http://spotify") as client:
        yield client


def bearing(spotify: FakeSpotify, *scope: str, account: str = "alice") -> dict[str, str]:
    return {"Authorization": f"Bearer {spotify.authorize(account, scope).access_token}"}


async def top_tracks(client: httpx.AsyncClient, headers: dict[str, str], **query: str) -> tuple[int, Any]:
    answer = await client.get("/v1/me/top/tracks", params=query, headers=headers)
    return answer.status_code, answer.json()


async def test_top_tracks_are_those_of_the_account(spotify: FakeSpotify, client: httpx.AsyncClient) -> None:
    """As many as asked for, always the same for one account and others for another."""
    spotify.add_account("bob")
    status, alice = await top_tracks(client, bearing(spotify, "user-top-read"), limit="3")
    assert (status, len(alice["items"])) == (200, 3)
    assert alice["items"][0].keys() >= {"name", "artists", "duration_ms"}
    assert (await top_tracks(client, bearing(spotify, "user-top-read"), limit="3"))[1] == alice
    assert (await top_tracks(client, bearing(spotify, "user-top-read", account="bob"), limit="3"))[1] != alice


@pytest.mark.parametrize("limit", ["0", "51", "-1", "x", "\u00b2", ""])
async def test_a_limit_out_of_range_is_refused(spotify: FakeSpotify, client: httpx.AsyncClient, limit: str) -> None:
    """1 to 50."""
    status, body = await top_tracks(client, bearing(spotify, "user-top-read"), limit=limit)
    assert (status, body["error"]["message"]) == (400, "Invalid limit")


async def test_a_page_leads_to_the_next(spotify: FakeSpotify, client: httpx.AsyncClient) -> None:
    """Pages of five: the first and the last, which together are all, and a refusal of what is no offset."""
    headers = bearing(spotify, "user-top-read")
    _, first = await top_tracks(client, headers, limit="5")
    second = (await client.get(first["next"], headers=headers)).json()
    assert (first["previous"], second["next"], len(second["items"])) == (None, None, 3)
    assert (await client.get(second["previous"], headers=headers)).json()["items"] == first["items"]
    assert (await top_tracks(client, headers, limit="8"))[1]["items"] == first["items"] + second["items"]
    for offset in ("-1", "x", "", "12345"):
        status, body = await top_tracks(client, headers, offset=offset)
        assert (status, body["error"]["message"]) == (400, "Invalid offset")


async def test_the_web_api_refuses_in_spotifys_manner(spotify: FakeSpotify, client: httpx.AsyncClient) -> None:
    """401 for the token, 403 for a scope that is missing, 403 in plain text for an account that may not."""
    for headers, message in (({}, "No token provided"), ({"Authorization": "Bearer x"}, "Invalid access token")):
        assert await top_tracks(client, headers) == (401, {"error": {"status": 401, "message": message}})
    status, body = await top_tracks(client, bearing(spotify, "user-read-email"))
    assert (status, body["error"]["message"]) == (403, "Insufficient client scope")
    headers = bearing(spotify, "user-top-read")
    spotify.add_account("alice", refusal="User not registered in the Developer Dashboard")
    answer = await client.get("/v1/me/top/tracks", headers=headers)
    assert (answer.status_code, answer.text) == (403, "User not registered in the Developer Dashboard")


async def test_a_user_removes_the_app_on_the_page_of_apps(spotify: FakeSpotify, client: httpx.AsyncClient) -> None:
    """It lists the accounts that have agreed, escaped, and ends the consent of one."""
    spotify.add_account("bob", display_name="Bob")
    assert "No account has agreed" in (await client.get("/account/apps")).text
    grant, other = spotify.authorize("alice"), spotify.authorize("bob")
    page = (await client.get("/account/apps")).text
    assert "&lt;Alice &amp; Co&gt;" in page
    assert "Bob" in page
    answer = await client.post("/account/apps", data={"account": "alice"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/account/apps")
    assert spotify.accepts(grant.access_token)
    assert not spotify.accepts_refresh(grant.refresh_token or "")
    assert spotify.accepts_refresh(other.refresh_token or "")
    page = (await client.get("/account/apps")).text
    assert "Alice" not in page
    assert "Bob" in page


async def test_the_page_of_apps_has_an_entry_for_each_app_of_an_account() -> None:
    """Where several apps are registered it names them, escaped; access is removed for one of them, or for all."""
    spotify = FakeSpotify(other_apps={"<second>": None})
    spotify.add_account("alice")
    first, second = spotify.authorize("alice"), spotify.authorize("alice", client_id="<second>")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=spotify), base_url="http://spotify") as client:
        page = (await client.get("/account/apps")).text
        assert page.count("Remove access") == 2
        assert page.index("app demo-client") < page.index("app &lt;second&gt;")
        assert '<input type="hidden" name="client_id" value="&lt;second&gt;">' in page
        for client_id, both in (("unknown", 2), ("<second>", 1)):
            answer = await client.post("/account/apps", data={"account": "alice", "client_id": client_id})
            assert answer.status_code == 303
            assert (await client.get("/account/apps")).text.count("Remove access") == both
        assert spotify.accepts_refresh(first.refresh_token or "")
        assert not spotify.accepts_refresh(second.refresh_token or "")
        await client.post("/account/apps", data={"account": "alice"})
        assert "No account has agreed" in (await client.get("/account/apps")).text


async def test_the_page_of_apps_names_no_app_where_there_is_one(
    spotify: FakeSpotify, client: httpx.AsyncClient
) -> None:
    """One entry for an account, whose form names the account alone."""
    spotify.authorize("alice")
    spotify.authorize("alice")
    page = (await client.get("/account/apps")).text
    assert page.count("Remove access") == 1
    assert "demo-client" not in page
    assert "client_id" not in page


@pytest.mark.parametrize(
    ("scope", "named"),
    [
        ([], set[str]()),
        (["user-read-email"], {"email"}),
        (["user-read-private"], {"country", "product", "explicit_content"}),
    ],
)
async def test_a_scope_shows_more_of_the_profile(
    spotify: FakeSpotify, client: httpx.AsyncClient, scope: list[str], named: set[str]
) -> None:
    """As Spotify documents GET /v1/me; the lasting id and the images need no scope."""
    spotify.add_account("alice", email="alice@example.org", account_id="A1", country="DE", product="free")
    body = (await client.get("/v1/me", headers=bearing(spotify, *scope))).json()
    shown = {"email": "alice@example.org", "country": "DE", "product": "free"}
    assert {name: value for name, value in body.items() if name in shown} == {
        name: value for name, value in shown.items() if name in named
    }
    assert body.keys() & {"email", "country", "product", "explicit_content"} == named
    assert (body["account_id"], [image["height"] for image in body["images"]]) == ("A1", [300, 64])


async def test_an_app_has_a_token_of_its_own(client: httpx.AsyncClient) -> None:
    """By client credentials, with the secret alone; it searches, and stands for no user."""
    form = {"grant_type": "client_credentials"}
    refused = await client.post("/api/token", data={**form, "client_id": "demo-client"})
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client")
    granted = (await client.post("/api/token", data=form, auth=("demo-client", "demo-secret"))).json()
    assert granted.keys() == {"access_token", "token_type", "expires_in"}
    headers = {"Authorization": f"Bearer {granted['access_token']}"}
    found = await client.get("/v1/search", params={"q": "cobalt", "type": "track"}, headers=headers)
    assert [track["name"] for track in found.json()["tracks"]["items"]] == ["Cobalt"]
    assert await top_tracks(client, headers) == (
        401,
        {"error": {"status": 401, "message": "Valid user authentication required"}},
    )


async def test_the_date_of_an_answer_is_that_of_the_clock() -> None:
    """So a service can be tested with a Spotify whose clock is another one's."""
    spotify = FakeSpotify(clock=lambda: 86_400.0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=spotify), base_url="http://spotify") as client:
        assert (await client.get("/v1/me")).headers["date"] == "Fri, 02 Jan 1970 00:00:00 GMT"
