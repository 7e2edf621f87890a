"""Which answers of the Web API are about the app and not about the user: a pure function of status and body."""

import json
import re
from typing import Any, cast

from spotconn.events import AppRefusal

FORBIDDEN, TOO_MANY_REQUESTS = 403, 429
LARGEST_BODY = 2 * 1024
"""Bytes of a body that is looked at; Spotify's have one or two hundred, and the patterns take the square of it."""

WITHOUT_PREMIUM = (
    "the account that owns it has no active Premium subscription: renew it; Spotify may take some hours to notice"
)
SERVES_NOBODY: dict[AppRefusal, str] = {
    "invalid_client": "its id or secret is wrong: correct SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET or, if it is "
    "another app, SPOTCONN_OTHER_APPS",
    "premium_required": WITHOUT_PREMIUM,
}
"""What ends all use of an app until an engineer has mended it, and what to do."""
REMEDIES: dict[AppRefusal, str] = {
    **SERVES_NOBODY,
    "quota_exceeded": "its quota of requests is used up: send fewer, and wait",
    "user_not_registered": "a user is not registered in its dashboard, as development mode demands: register them, or "
    "apply for the extended quota",
}
"""What is wrong with an app, and what to do."""

# In the words of 2021 to 2026, each as plain text or as the message of JSON.
_OWNER_WITHOUT_PREMIUM = re.compile(r"premium\b.*\bowner of the app\b", re.IGNORECASE | re.DOTALL)
_USER_NOT_REGISTERED = re.compile(
    r"\buser\b.*\b(not (be )?registered\b|not approved for app\b)", re.IGNORECASE | re.DOTALL
)


def app_refusal(status: int, body: bytes | str) -> AppRefusal | None:
    """Return what an answer of the Web API refuses the app; None for an answer that is not about the app.

    A 429 that asks to wait is not, nor is a 403 about a scope or about the user's own subscription.
    """
    if status not in {FORBIDDEN, TOO_MANY_REQUESTS} or len(body) > LARGEST_BODY:
        return None
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    error = _error(text)
    if status == TOO_MANY_REQUESTS:
        return "quota_exceeded" if error.get("reason") == "QUOTA_EXCEEDED" else None
    message = str(error.get("message", "")) if error else text
    if _OWNER_WITHOUT_PREMIUM.search(message):
        return "premium_required"
    return "user_not_registered" if _USER_NOT_REGISTERED.search(message) else None


def _error(text: str) -> dict[str, Any]:
    """Return the error object of an answer, or an empty one if the text is not JSON with one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    error: object = cast("dict[str, Any]", value).get("error") if isinstance(value, dict) else None
    return cast("dict[str, Any]", error) if isinstance(error, dict) else {}
