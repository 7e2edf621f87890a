"""The values of an authorization by cookie: what the browser gets, and what comes of it."""

from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

from pydantic import Field

from spotconn._value import Value
from spotconn.models import Connection, Profile, TokenGrant

MOST_DATA, LARGEST_DATA = 8, 1000
"""Texts that an authorization takes along, and characters of them with their names."""


class Authorization(Value):
    """An authorization that has begun. The answer to the browser has both parts.

    Attributes:
        url: of Spotify, to redirect the browser to.
        cookie: the text of a Set-Cookie header, by which the browser is recognised when it comes back.
    """

    url: str = Field(repr=False, exclude=True)
    cookie: str = Field(repr=False, exclude=True)


class Completed(Value):
    """An authorization to which the user has agreed.

    Attributes:
        user_id: who began it; None where nobody was known, as in a sign-in.
        connection: as it was saved for that user; None where nobody was known.
        grant: what Spotify granted.
        profile: of the account.
        data: as given to `ConnectFlow.begin`.
    """

    user_id: UUID | None = None
    connection: Connection | None = None
    grant: TokenGrant
    profile: Profile
    data: Mapping[str, str] = Field(default={}, repr=False)


def checked_data(data: Mapping[str, str]) -> Mapping[str, str]:
    """Return what an authorization is to take along.

    Raises:
        ValueError: it holds something else than texts, or more than is allowed.
    """
    if not _is_small(data):
        raise ValueError(
            f"data: expected at most {MOST_DATA} texts, with {LARGEST_DATA} characters in all with their names"
        )
    return data


def _is_small(data: object) -> bool:
    if not isinstance(data, Mapping):
        return False
    pairs = cast("Mapping[str, Any]", data).items()
    texts = [text for pair in pairs for text in pair]
    return len(pairs) <= MOST_DATA and all(map(_is_text, texts)) and sum(map(len, texts)) <= LARGEST_DATA


def _is_text(value: object) -> bool:
    """Return whether this is a text that JSON can hold: no part of a surrogate pair alone."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
