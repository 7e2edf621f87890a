"""Which answers are about the app itself, and when a refusal begins and ends."""

import json
from uuid import UUID

import pytest

from spotconn import ConfigurationError
from spotconn._spotify.answers import read_profile
from spotconn._spotify.app_answers import REMEDIES, app_refusal
from spotconn._spotify.app_refusals import MOST_USERS, AppRefusals
from spotconn.events import AppRefusal
from spotconn.testing import FakeClock

PREMIUM = (
    "Active premium subscription required for the owner of the app. When the subscription status changes, it can take "
    "a few hours before requests are allowed again."
)
ALICE, BOB = UUID(int=1), UUID(int=2)


def error(status: int, message: str, **more: str) -> str:
    return json.dumps({"error": {"status": status, "message": message, **more}})


ANSWERS: list[tuple[int, str, AppRefusal | None]] = [
    (403, PREMIUM, "premium_required"),
    (403, error(403, PREMIUM), "premium_required"),
    (403, "User not registered in the Developer Dashboard", "user_not_registered"),
    (403, "User not approved for app", "user_not_registered"),
    (
        403,
        error(403, "Check settings on developer.spotify.com/dashboard, the user may not be registered."),
        "user_not_registered",
    ),
    (403, "The user is not registered for this application. Please check your settings.", "user_not_registered"),
    (429, error(429, "Too many requests", reason="QUOTA_EXCEEDED"), "quota_exceeded"),
    # Of one user, one endpoint or one moment.
    (403, error(403, "Insufficient client scope"), None),
    (403, error(403, "Player command failed: Premium required", reason="PREMIUM_REQUIRED"), None),
    (403, error(403, "You cannot add tracks to a playlist you don't own."), None),
    (403, "", None),
    (403, '{"error": "x"}', None),
    (403, "[" * 5000, None),
    (429, "Too many requests", None),
    (429, error(429, "API rate limit exceeded"), None),
    (429, '["QUOTA_EXCEEDED"]', None),
    # Another status says nothing, whatever the words, and a page of that size is none of Spotify's answers.
    (401, PREMIUM, None),
    (200, PREMIUM, None),
    (403, PREMIUM + " " * 2_000, None),
]


@pytest.mark.parametrize(("status", "body", "reason"), ANSWERS)
def test_the_answers_that_are_about_the_app(status: int, body: str, reason: AppRefusal | None) -> None:
    """By the words of Spotify, as plain text or JSON; a wait, a scope and the user's own subscription are not."""
    assert app_refusal(status, body) == app_refusal(status, body.encode()) == reason


def test_bytes_that_are_no_text_are_no_refusal() -> None:
    """They are read all the same."""
    assert app_refusal(403, b"\xff\xfe") is None


def test_a_profile_that_is_refused_for_the_owner_is_not_the_users_trouble() -> None:
    """A user who connects then could mend nothing."""
    with pytest.raises(ConfigurationError, match=r"^Spotify refuses this app: .* no active Premium"):
        read_profile(403, {}, PREMIUM.encode(), now=0)


class Recorder:
    """What the listener of one app is notified of."""

    def __init__(self) -> None:
        self.clock = FakeClock(1000.0)
        self.refusals = AppRefusals("app", self.clock)
        self.refusals.listeners.append(self)
        self.count = 0
        self.changes: list[tuple[str, UUID | None, bool]] = []

    def refused(self, client_id: str | None, reason: AppRefusal) -> None:
        assert (client_id, reason in REMEDIES) == ("app", True)
        self.count += 1

    def changed(self, client_id: str | None, reason: AppRefusal, user_id: UUID | None, *, refused: bool) -> None:
        assert client_id == "app"
        self.changes.append((reason, user_id, refused))


def test_a_refusal_is_told_once_until_a_minute_without_one() -> None:
    """Near the end of a quota answers alternate: that is one change, and each answer is counted."""
    seen = Recorder()
    for _ in range(5):
        seen.refusals.refused("quota_exceeded", ALICE)
        seen.clock.step(59)
        seen.refusals.accepted(BOB)
    assert (seen.count, seen.changes) == (5, [("quota_exceeded", None, True)])
    seen.clock.step(2)
    seen.refusals.accepted(BOB)
    seen.refusals.accepted(BOB)
    assert seen.changes[1:] == [("quota_exceeded", None, False)]
    assert not seen.refusals.may_end(BOB)


def test_a_user_who_is_not_registered_is_alone() -> None:
    """Told for each such user; the success of another one ends nothing, and the check of readiness does not fail."""
    seen = Recorder()
    for user in (ALICE, BOB, ALICE, None):
        seen.refusals.refused("user_not_registered", user)
    seen.clock.step(61)
    seen.refusals.accepted(BOB)
    assert seen.count == 4
    assert seen.changes == [(r, u, on) for u, on in ((ALICE, True), (BOB, True), (BOB, False))
                            for r in ("user_not_registered",)]  # fmt: skip
    assert seen.refusals.recent() is None
    assert [seen.refusals.may_end(user) for user in (ALICE, BOB)] == [True, False]


def test_users_are_remembered_in_bounded_number() -> None:
    """Strangers who connect in any number fill no memory."""
    seen = Recorder()
    for number in range(MOST_USERS + 10):
        seen.refusals.refused("user_not_registered", UUID(int=number))
    assert len(seen.refusals._users) == MOST_USERS


def test_credentials_and_web_api_end_their_own_refusals() -> None:
    """The Web API serves tokens for an hour after the secret is wrong, and a refresh says nothing of a subscription."""
    seen = Recorder()
    seen.refusals.refused("invalid_client")
    seen.refusals.record(403, PREMIUM.encode())
    seen.clock.step(61)
    seen.refusals.record(200, b"{}")
    seen.refusals.end("invalid_client")
    assert [(reason, refused) for reason, _, refused in seen.changes] == [
        ("invalid_client", True),
        ("premium_required", True),
        ("premium_required", False),
        ("invalid_client", False),
    ]


@pytest.mark.parametrize("reason", ["invalid_client", "premium_required"])
def test_readiness_fails_for_five_minutes_after_the_last_refusal(reason: AppRefusal) -> None:
    """Without traffic nothing would ever show that it works again."""
    seen = Recorder()
    assert seen.refusals.recent() is None
    for user in (ALICE, BOB):
        seen.refusals.refused(reason, user)
    seen.clock.step(299)
    assert seen.refusals.recent() == reason
    seen.refusals.refused(reason, ALICE)
    seen.clock.step(299)
    assert seen.refusals.recent() == reason
    seen.clock.step(2)
    assert seen.refusals.recent() is None


def test_a_spent_quota_does_not_fail_readiness() -> None:
    """One user may use it up, and no restart brings it back."""
    seen = Recorder()
    seen.refusals.refused("quota_exceeded")
    assert seen.refusals.recent() is None


def test_a_clock_that_is_set_back_holds_no_refusal() -> None:
    """The next success ends it."""
    seen = Recorder()
    seen.refusals.refused("premium_required")
    seen.clock.step(-500)
    seen.refusals.accepted()
    assert [refused for _, _, refused in seen.changes] == [True, False]
