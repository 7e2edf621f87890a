"""The cookie of an authorization: its name, the headers that carry it, and what a browser makes of them."""

from http.cookies import SimpleCookie

import pytest

from spotconn import ConnectFailed, ConnectFlow, ConnectionStore, SpotifyAccounts
from spotconn._cookies import cookie_name, read_cookie, set_cookie, surplus_cookies
from spotconn.testing import FakeSpotify
from support.consent import SCOPES, agree, sent

NAMES = [f"__Host-spotconn-{number:08x}" for number in range(7)]


def test_the_set_cookie_header_is_as_narrow_as_it_can_be() -> None:
    """On https only this host sees it; on a loopback address, which has no https, it has no Secure."""
    secure, plain = cookie_name("state", secure=True), cookie_name("state", secure=False)
    assert (secure, plain) == ("__Host-spotconn-4ba69735", "spotconn-4ba69735")
    assert set_cookie(secure, "v") == f"{secure}=v; Path=/; Max-Age=600; HttpOnly; Secure; SameSite=Lax"
    assert set_cookie(plain, "v") == f"{plain}=v; Path=/; Max-Age=600; HttpOnly; SameSite=Lax"
    assert set_cookie(secure, "") == f"{secure}=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax"
    assert cookie_name("another", secure=True) != secure


async def test_begin_gives_the_cookie_of_its_redirect_uri(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify
) -> None:
    """With https it is bound to the host; its value is random, and in neither URL."""
    for uri, prefix in (
        ("https://example.com/callback", "__Host-spotconn-"),
        ("HTTPS://example.com/callback", "__Host-spotconn-"),
        ("http://[::1]:1/callback", "spotconn-"),
    ):
        flow = ConnectFlow(store, accounts, redirect_uri=uri, scopes=SCOPES)
        first, second = [await flow.begin(None) for _ in range(2)]
        ((name, morsel),) = SimpleCookie(first.cookie).items()
        assert name.startswith(prefix)
        assert (morsel["path"], morsel["max-age"], morsel["samesite"], morsel["domain"]) == ("/", "600", "Lax", "")
        assert (bool(morsel["secure"]), morsel["httponly"]) == (prefix.startswith("__Host-"), True)
        assert len(morsel.value) == 43
        assert morsel.value not in second.cookie + first.url
        assert morsel.value not in repr(first) + str(first.model_dump())
        assert first.url not in repr(first)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("a=1; n=x; b=2", "x"),
        ("n=x", "x"),
        ("a=1;n=x", "x"),
        ("n=x=y", "x=y"),
        ("n=x; n=x", "x"),
        ("n=x; n=y", None),
        ("xn=x; n2=x", None),
        ("n", ""),
        ("", None),
        (None, None),
        (";;;= ;=;", None),
        ("n=" + "x" * 100_000, "x" * 100_000),
    ],
)
def test_a_cookie_is_found_in_the_header_of_a_request(header: str | None, value: str | None) -> None:
    """By its whole name; two values of one name are none, since one of them is somebody else's."""
    assert read_cookie(header, "n") == value


@pytest.mark.parametrize("header", [b"n=x", {"n": "x"}, 7])
def test_what_is_no_header_is_named(header: object) -> None:
    """Bytes and dictionaries of cookies are errors of the program, without their values."""
    with pytest.raises(ValueError, match="cookie: expected the Cookie header of the request, as a str"):
        read_cookie(header, "n")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_more_than_five_of_ours_are_surplus() -> None:
    """The oldest, which browsers send first; cookies of others do not count, nor does one that is sent twice."""
    header = "session=1; " + "; ".join(f"{name}=v" for name in [*NAMES, NAMES[-1]]) + "; __Host-spotconn-no=v"
    assert surplus_cookies(header) == NAMES[:2]
    assert surplus_cookies(header, most=4) == NAMES[:3]
    assert surplus_cookies("; ".join(f"{name}=v" for name in NAMES[:5])) == []
    assert surplus_cookies(None) == []


async def test_two_tabs_of_one_browser_each_come_back(flow: ConnectFlow, spotify: FakeSpotify) -> None:
    """Each authorization has a cookie of its own; one that is used again is refused for that."""
    first, second = await flow.begin(None), await flow.begin(None)
    cookies = sent(first, second)
    for begun in (second, first):
        callback = await agree(begun.url)
        assert (await flow.complete(callback, cookies)).user_id is None
        with pytest.raises(ConnectFailed) as raised:
            await flow.complete(callback, cookies)
        assert raised.value.reason == "state_used"


async def test_a_cookie_that_somebody_has_planted_opens_nothing(flow: ConnectFlow, spotify: FakeSpotify) -> None:
    """Neither one of the attacker's own under the right name, nor a second one beside the right one, nor an
    empty or shortened one; nothing is spent.
    """
    begun, attackers = await flow.begin(None), await flow.begin(None)
    callback = await agree(begun.url)
    name, value = sent(begun).removeprefix("session=1; ").split("=")
    planted = sent(attackers).removeprefix("session=1; ").split("=")[1]
    for cookies in (f"{name}={planted}", f"{name}={value}; {name}={planted}", f"{name}=", f"{name}={value[:-1]}"):
        with pytest.raises(ConnectFailed, match="another browser"):
            await flow.complete(callback, cookies)
    assert spotify.token_calls == 0
    assert (await flow.complete(callback, f"{name}={value}")).profile.spotify_user_id == "alice"
