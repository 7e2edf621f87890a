"""The values between the rooms: freshness, the six months, and secrets that do not show."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from pydantic import ValidationError

from spotconn import (
    Connection,
    ConnectionStatus,
    Freshness,
    Outcome,
    Profile,
    RecordedFailure,
    RefreshFailure,
    RefreshTurn,
    StoredTexts,
    TokenGrant,
    freshness,
)
from spotconn.errors import ReauthorizationReason
from spotconn.models import FailureReason, add_months, is_token, read_scope

USER = UUID("5b0c9d1e-0f0a-4a52-8a55-3c2f1d6e7a88")
END = datetime(2026, 11, 24, 12, tzinfo=UTC)
GRANT = TokenGrant(access_token="marked-access", refresh_token="marked-refresh", expires_at=END)


def connection(**changes: Any) -> Connection:
    values: dict[str, Any] = {
        "id": USER,
        "user_id": USER,
        "spotify_user_id": "alice",
        "access_token": "marked-access",
        "refresh_token": "marked-refresh",
        "expires_at": END,
        "remaining": 60.0,
        "texts": StoredTexts("marked-access", "marked-refresh"),
        "connected_at": END,
        "display_name": None,
        "email": None,
        "scope": None,
    }
    return Connection(**(values | changes))


@pytest.mark.parametrize(
    ("remaining", "expected"),
    [
        (3600, Freshness.FRESH),
        (300.001, Freshness.FRESH),
        (300, Freshness.STALE),
        (30.001, Freshness.STALE),
        (30, Freshness.EXPIRED),
        (0, Freshness.EXPIRED),
        (-1, Freshness.EXPIRED),
    ],
)
def test_freshness_changes_at_its_boundaries(remaining: float, expected: Freshness) -> None:
    """A token is STALE from exactly `window` and EXPIRED from exactly `margin` seconds before its end."""
    assert freshness(END, END.timestamp() - remaining, window=300, margin=30) is expected


def test_a_margin_wider_than_the_window_wins() -> None:
    """A token within the margin is never served, whatever the window."""
    assert freshness(END, END.timestamp() - 40, window=10, margin=60) is Freshness.EXPIRED


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-06-18T10:00+00:00", "2026-12-18T10:00+00:00"),
        ("2026-08-31T10:00+00:00", "2027-02-28T10:00+00:00"),
        ("2027-08-31T10:00+00:00", "2028-02-29T10:00+00:00"),
        ("2026-12-31T23:59+00:00", "2027-06-30T23:59+00:00"),
        ("2026-09-01T00:30+02:00", "2027-02-28T22:30+00:00"),
    ],
)
def test_reauthorize_by_is_six_months_after_connecting(moment: str, expected: str) -> None:
    """The end of the refresh token is the same day six months on, or that month's last, in UTC."""
    ends = connection(connected_at=datetime.fromisoformat(moment)).reauthorize_by
    assert ends == datetime.fromisoformat(expected)
    assert ends is not None
    assert ends.utcoffset() == timedelta(0)


def test_reauthorize_by_is_unknown_without_connected_at() -> None:
    """A row whose `connected_at` was never recorded promises no date."""
    assert connection(connected_at=None).reauthorize_by is None


async def test_months_are_counted_as_postgres_counts_them(admin: asyncpg.Connection) -> None:
    """Every day of three years, a leap year among them, gives what `+ interval` gives."""
    await admin.execute("set timezone = 'UTC'")
    rows = await admin.fetch(
        "select day, months, day + make_interval(months => months) as expected "
        "from generate_series(timestamptz '2026-01-01Z', '2028-12-31Z', interval '1 day') as day, "
        "generate_series(0, 12) as months"
    )
    assert len(rows) > 10_000
    assert [row["expected"] for row in rows] == [add_months(row["day"], row["months"]) for row in rows]


VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
"""What RFC 6749 allows in a token beside the blank."""


def test_a_token_is_visible_ascii_without_quotes() -> None:
    """Every letter that Spotify may use is taken, and no other."""
    taken = "".join(letter for letter in map(chr, range(0x3000)) if is_token(letter))
    assert taken == "".join(letter for letter in VISIBLE if letter not in "\"'\\")
    assert is_token(taken)
    assert not any(is_token(word) for word in ("", "null", "NULL", "None", "undefined", taken + "\n", "a b"))
    assert is_token("nullify")


SCOPES = frozenset({"user-read-email", "user-top-read"})


@pytest.mark.parametrize(
    "text",
    [
        "user-read-email user-top-read",
        "  user-top-read\n user-read-email ",
        "user-read-email,user-top-read",
        "user-read-email, user-top-read,",
        '["user-read-email","user-top-read"]',
        '[\n  "user-read-email",\n  "user-top-read"\n]',
        "{user-read-email,user-top-read}",
        '{"user-read-email",user-top-read,NULL}',
        "['user-read-email', 'user-top-read']",
        '"user-read-email user-top-read"',
        r'"[\"user-read-email\",\"user-top-read\"]"',
    ],
)
def test_scopes_are_read_in_every_form(text: str) -> None:
    """Blanks, commas, JSON, arrays of Postgres and lists of Python are forms in which other programs store them."""
    assert read_scope(text) == SCOPES


def test_users_with_the_same_scopes_share_them() -> None:
    """A cached token holds its scopes, and most users of an app have granted the same."""
    text = "user-top-read user-read-email"
    assert read_scope(text) is read_scope(text.upper().lower())


@pytest.mark.parametrize(
    "text", [None, " ", "\n", ",", "[]", "{}", '""', "null", "None", "[null]", "undefined"], ids=repr
)
def test_a_text_without_scopes_says_nothing(text: str | None) -> None:
    """It was no record of a grant; only the empty text is, which this library stores for a grant without scopes."""
    assert read_scope(text) is None
    assert read_scope("") == frozenset()


@pytest.mark.parametrize(
    "value",
    [
        GRANT,
        connection(),
        RefreshTurn(outcome=Outcome.SUPERSEDED, user_id=USER, connection=connection()),
        ConnectionStatus.of(connection()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_token_is_shown(value: object) -> None:
    """The repr, the text and a formatted value hold no token, however deep it lies."""
    assert "marked" not in f"{value!r} {value!s} {[value]}"


def test_a_status_holds_no_token() -> None:
    """What a profile page gets has no token even when it is dumped."""
    assert "marked" not in ConnectionStatus.of(connection()).model_dump_json()


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenGrant(access_token="marked\n", expires_at=END),
        lambda: TokenGrant(access_token="marked\N{SNOWMAN}", expires_at=END),
        lambda: TokenGrant(access_token="", refresh_token="marked", expires_at=END),
        lambda: TokenGrant(access_token="Bearer marked-", expires_at=END),
        lambda: TokenGrant(access_token="marked", refresh_token='"marked-"', expires_at=END),
        lambda: TokenGrant(access_token="None", expires_at=END),
        lambda: TokenGrant(access_token="marked", refresh_token="", expires_at=END),
        lambda: TokenGrant(access_token="marked", expires_at=END.replace(tzinfo=None)),
        lambda: TokenGrant.model_validate({"access_token": "marked", "expires_at": END, "marked": "marked"}),
        lambda: connection(refresh_token=b"marked\xff"),
        lambda: connection(access_token=["marked"]),
        lambda: RefreshTurn(outcome=Outcome.GONE, user_id=USER, connection=connection()),
        lambda: RefreshTurn(outcome=Outcome.BUSY, user_id=USER),
        lambda: RefreshTurn(outcome=Outcome.GRANTED, user_id=USER, connection=connection()),
        lambda: RefreshTurn(outcome=Outcome.BUSY, user_id=USER, connection=connection(), lease_id=USER),
        lambda: Profile(spotify_user_id=""),
        lambda: Profile(spotify_user_id="alice", email="marked\x00"),
        lambda: RefreshFailure(reason="unavailable", retry_after=-1),
        lambda: RefreshFailure(reason="unavailable", retry_after=float("nan")),
    ],
)
def test_a_wrong_value_is_refused_and_not_repeated(make: Callable[[], object]) -> None:
    """A value that cannot be right is refused, and the refusal shows none of its values."""
    with pytest.raises(ValidationError) as raised:
        make()
    assert "input_value" not in str(raised.value)
    assert "marked-" not in f"{raised.value} {raised.value!r}"


def test_a_value_cannot_be_changed() -> None:
    """A value that several callers share is frozen."""
    with pytest.raises(AttributeError, match=r"^access_token: a TokenGrant is frozen$"):
        GRANT.access_token = "marked-other"
    assert GRANT.access_token == "marked-access"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("expired", "expired"), ("revoked", "revoked"), ("invalid", "invalid"), ("unavailable", None)],
)
def test_only_a_terminal_failure_asks_for_reauthorization(
    reason: FailureReason, expected: ReauthorizationReason | None
) -> None:
    """Spotify's passing trouble is no reason for the user to connect again."""
    failed = connection(failure=RecordedFailure(reason=reason, since=END))
    assert failed.reauthorization == ConnectionStatus.of(failed).reauthorization == expected
    assert connection().reauthorization is None


def test_a_status_tells_all_but_the_tokens() -> None:
    """A status repeats every other field of the connection."""
    zone = timezone(timedelta(hours=1))
    stored = connection(scope=frozenset({"a"}), display_name="A", email="a@b", connected_at=END.astimezone(zone))
    status = ConnectionStatus.of(stored)
    assert status.connected
    for name in ("spotify_user_id", "display_name", "email", "scope", "connected_at", "reauthorize_by", "expires_at"):
        assert getattr(status, name) == getattr(stored, name), name
