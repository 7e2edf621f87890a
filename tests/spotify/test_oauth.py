"""The requests of OAuth: the authorization URL, PKCE and base URLs; no I/O."""

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from spotconn._spotify.authorization import authorization_request_url, base_url, code_challenge, new_code_verifier
from spotconn.errors import ConfigurationError


def test_the_challenge_of_rfc_7636() -> None:
    """The challenge is that of RFC 7636, appendix B."""
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert code_challenge(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_a_new_verifier() -> None:
    """Every verifier is new and of the form that RFC 7636 demands."""
    verifier = new_code_verifier()
    assert re.fullmatch(r"[A-Za-z0-9_.~-]{43,128}", verifier)
    assert verifier != new_code_verifier()


def authorization_query(scopes: Any, *, show_dialog: bool = False) -> dict[str, list[str]]:
    url = authorization_request_url(
        "https://accounts.spotify.com",
        client_id="app id",
        redirect_uri="https://example.org/back?x=1&y=2",
        scopes=scopes,
        state="st&te",
        code_challenge="ch",
        show_dialog=show_dialog,
    )
    assert url.startswith("https://accounts.spotify.com/authorize?")
    return parse_qs(urlsplit(url).query, strict_parsing=True)


def test_the_authorization_url() -> None:
    """The URL holds every parameter of the code flow with PKCE, safely encoded."""
    assert authorization_query(["b", "a", "b"]) == {
        "client_id": ["app id"],
        "response_type": ["code"],
        "redirect_uri": ["https://example.org/back?x=1&y=2"],
        "scope": ["b a"],
        "state": ["st&te"],
        "code_challenge_method": ["S256"],
        "code_challenge": ["ch"],
        "show_dialog": ["false"],
    }


def test_scopes_of_the_authorization_url() -> None:
    """No scopes means no parameter, and one text of scopes is not taken for its letters."""
    assert "scope" not in authorization_query([])
    query = authorization_query("user-read-email streaming", show_dialog=True)
    assert (query["scope"], query["show_dialog"]) == (["user-read-email streaming"], ["true"])


@pytest.mark.parametrize(
    "url", ["https://accounts.spotify.com/", "http://127.0.0.1:8080", "http://[::1]:1/x", "https://h:8443/x"]
)
def test_a_base_url(url: str) -> None:
    """https, or http to a loopback literal; a trailing slash goes."""
    assert base_url(url, name="api_url") == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "accounts.spotify.com",
        "http://accounts.spotify.com",
        "http://localhost:8080",
        "http://",
        "https://",
        "ftp://127.0.0.1",
        "https://user:s3cret@host",
        "https://host?s3cret",
        "https://host#s3cret",
        "https://host:s3cret",
        "https://ho st",
        "https://host\n",
        "https://[::1",
    ],
)
def test_a_malformed_base_url(url: str) -> None:
    """Anything else is refused by the argument's name, and its value is not shown."""
    with pytest.raises(ConfigurationError, match=r"^api_url must be") as raised:
        base_url(url, name="api_url")
    assert "s3cret" not in str(raised.value)
    assert raised.value.__context__ is None
