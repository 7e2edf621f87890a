"""Where a browser may be sent afterwards."""

from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spotconn.web._return_urls import checked_origin, checked_return_url, with_outcome

FRONT_END = "https://app.example.com"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/", "/"),
        ("/profile?tab=music&at=https://x.example//y#top", "/profile?tab=music&at=https://x.example//y#top"),
        ("/caf%C3%A9", "/caf%C3%A9"),
        ("profile", None),
        ("", None),
    ],
)
def test_a_path_of_the_service_is_as_it_was_given(value: str, expected: str | None) -> None:
    """A path with a query and a fragment, and nothing that is relative to the page."""
    assert checked_return_url(value, None) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/profile", f"{FRONT_END}/profile"),
        (f"{FRONT_END}/profile?a=1", f"{FRONT_END}/profile?a=1"),
        (FRONT_END, f"{FRONT_END}/"),
        (f"{FRONT_END}.evil.example/", None),
        (f"{FRONT_END}@evil.example/", None),
        (f"{FRONT_END}:8443/", None),
        (f"{FRONT_END}//evil.example", None),
        ("https://evil.example/", None),
        (f"/{'x' * (899 - len(FRONT_END))}", f"{FRONT_END}/{'x' * (899 - len(FRONT_END))}"),
        (f"/{'x' * (900 - len(FRONT_END))}", None),
        (f"{FRONT_END}/{'x' * (899 - len(FRONT_END))}", f"{FRONT_END}/{'x' * (899 - len(FRONT_END))}"),
    ],
)
def test_with_a_front_end_a_path_is_one_there(value: str, expected: str | None) -> None:
    """Also as a whole URL, of exactly that origin."""
    assert checked_return_url(value, FRONT_END) == expected


@settings(max_examples=300, deadline=None, database=None)
@example("%2F", FRONT_END)
@given(st.text(alphabet="/\\%25fF:@.aé\t\n ?#;ehtps", max_size=12), st.sampled_from([None, FRONT_END]))
def test_what_passes_stays_on_its_host(value: str, front_end: str | None) -> None:
    """Read by the rules of RFC 3986 against a page of the service, whatever stands in it."""
    found = checked_return_url(value, front_end)
    if found is not None:
        assert (urlsplit(found).netloc, found.isascii()) == ("app.example.com" if front_end else "", True)
        assert found.removeprefix(front_end or "").startswith("/")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/p", "/p?spotify=denied"),
        ("/p?a=1&b=#top", "/p?a=1&b=&spotify=denied#top"),
        ("/p?spotify=connected&a=%26&%73potify=connected", "/p?a=%26&spotify=denied"),
        ("/p#a?b", "/p?spotify=denied#a?b"),
    ],
)
def test_the_outcome_joins_the_query(url: str, expected: str) -> None:
    """It replaces an earlier one, and leaves the rest as it is."""
    assert with_outcome(url, "denied") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://App.Example.com/", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://[::1]:80/", "http://[::1]"),
    ],
)
def test_an_origin_is_as_browsers_write_it(value: str, expected: str) -> None:
    """In lower case, and without the port of its scheme."""
    assert checked_origin(value) == expected


@pytest.mark.parametrize(
    "value",
    ["app.example.com", "https://", "https://a.example/path", "https://a.example?x", "http://a.example", "https://a@b",
     "https://a.example:x", "null", "*", "https://a.example\n", "https://[::1", "https://é.example"],
)  # fmt: skip
def test_what_is_no_origin_is_refused_by_name(value: str) -> None:
    """The error names the argument."""
    with pytest.raises(ValueError, match=r"^front_end: expected an origin"):
        checked_origin(value)
