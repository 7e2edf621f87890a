"""Redirect URIs by Spotify's rules, and what a callback may look like."""

from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import httpx
import pytest
from pydantic import AnyHttpUrl
from starlette.datastructures import URL, QueryParams

from spotconn import ConfigurationError, ConnectFlow, ConnectionStore, SpotifyAccounts
from spotconn._settings import read_redirect_uri
from spotconn._spotify.redirect import UrlObject, checked_redirect_uri, read_callback

NO_STORE: ConnectionStore = ConnectionStore.__new__(ConnectionStore)
"""Never asked for anything."""


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.com/callback",
        "https://example.com",
        "https://example.com:8443/a/b?c=d",
        "http://127.0.0.1/callback",
        "http://127.0.0.1:8000/callback",
        "http://127.1.2.3:8000/callback",
        "http://[::1]:8000/callback",
    ],
)
def test_what_spotify_accepts_is_accepted(uri: str) -> None:
    """https, and http to a loopback literal on any port."""
    assert checked_redirect_uri(uri) == uri


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://localhost:8000/callback", "localhost"),
        ("https://localhost/callback", "localhost"),
        ("http://LOCALHOST/callback", "localhost"),
        ("http://app.localhost/callback", "localhost"),
        ("http://example.com/callback", "https"),
        ("http://10.0.0.1/callback", "https"),
        ("http://[fe80::1]/callback", "https"),
        ("ftp://127.0.0.1/callback", "https"),
        ("app://callback", "https"),
        ("https://example.com/callback#x", "fragment"),
        ("https://example.com/callback#", "fragment"),
        ("https://hush@example.com/callback", "user name"),
        ("https://example.com/call back", "URL"),
        ("https://example.com/\n", "URL"),
        ("https://ex\u00e4mple.com/", "URL"),
        ("https://example.com:0/", "URL"),
        ("https://example.com:x/", "URL"),
        ("https://[::1/", "URL"),
        ("https:///callback", "URL"),
        ("/callback", "URL"),
        ("", "URL"),
    ],
)
def test_what_spotify_refuses_is_refused_with_the_reason(uri: str, why: str) -> None:
    """At construction, before any user has been sent anywhere."""
    accounts = SpotifyAccounts("demo-client", http=httpx.AsyncClient())
    with pytest.raises(ConfigurationError, match=why) as raised:
        ConnectFlow(NO_STORE, accounts, redirect_uri=uri, scopes=())
    assert str(raised.value).startswith("redirect_uri ")
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    "scopes", ["user-read-email", [""], ["a b"], ["user-read-email\n"], ["\u00e4"], [7], b"user-read-email", [b"a"]]
)
def test_scopes_are_words(scopes: list[str]) -> None:
    """One string in place of several, or what is no scope, is found at construction."""
    accounts = SpotifyAccounts("demo-client", http=httpx.AsyncClient())
    with pytest.raises(ValueError, match="scopes"):
        ConnectFlow(NO_STORE, accounts, redirect_uri="http://127.0.0.1/", scopes=scopes)


@pytest.mark.parametrize("value", [None, "", " ", "http://localhost/hush"])
def test_the_setting_is_named(value: str | None) -> None:
    """SPOTIFY_REDIRECT_URI missing or refused is a ConfigurationError with its name, without its value."""
    environ = {} if value is None else {"SPOTIFY_REDIRECT_URI": value}
    with pytest.raises(ConfigurationError, match="SPOTIFY_REDIRECT_URI ") as raised:
        read_redirect_uri(environ)
    assert "hush" not in str(raised.value)


async def test_a_flow_takes_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """from_env reads that one variable and nothing else."""
    uri = "https://example.com/callback"
    monkeypatch.setenv("SPOTIFY_REDIRECT_URI", uri)
    async with SpotifyAccounts("demo-client") as accounts:
        flow = ConnectFlow.from_env(NO_STORE, accounts, scopes=["user-read-email"], on_event=print)
        assert (flow._redirect_uri, flow._scopes) == (uri, ("user-read-email",))


def test_a_callback_may_be_a_whole_url_or_its_path() -> None:
    """Behind a proxy the service may not know its own host; what stands in the query counts."""
    expected = ("a&b", "c d", "")
    query = f"state={quote('a&b')}&code=c+d&other=1&other=2"
    for place in ("https://example.com/callback?", "/callback?", "?"):
        assert tuple(read_callback(place + query)) == expected
    assert "c d" not in repr(read_callback("/?" + query))


QUERY = "state=the-state&code=the-code"
WHOLE = f"https://example.com/callback?{QUERY}"


@pytest.mark.parametrize("url", [httpx.URL(WHOLE), URL(WHOLE), AnyHttpUrl(WHOLE), WHOLE.replace("https", "HTTPS")])
def test_a_callback_may_be_the_url_object_of_a_framework(url: str | UrlObject) -> None:
    """The str() of such an object is the URL."""
    assert tuple(read_callback(url)) == ("the-state", "the-code", "")


@pytest.mark.parametrize(
    "given",
    [
        WHOLE.encode(),
        bytearray(WHOLE.encode()),
        QUERY,
        QUERY.encode(),
        dict(parse_qsl(QUERY)),
        urlsplit(WHOLE),
        QueryParams(QUERY),
        None,
        "",
        "callback?" + QUERY,
        "example.com/callback?" + QUERY,
    ],
    ids=repr,
)
def test_what_is_no_callback_url_is_named(given: Any) -> None:
    """A slip of the programmer is an error about the argument, not about the user, and repeats no value."""
    with pytest.raises(ValueError, match=r"^callback_url: expected the URL") as raised:
        read_callback(given)
    assert "the-code" not in str(raised.value)
