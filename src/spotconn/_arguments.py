"""Checks of arguments that several public calls take."""

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

CENTURY = timedelta(days=36_525)
"""The longest period that is meant: with a longer one a date may leave what Postgres or Python can hold."""


def is_client_id(client_id: str) -> bool:
    """Return whether a text can be the id of an app: visible ASCII without a colon (RFC 7617, section 2)."""
    return re.fullmatch(r"[\x21-\x39\x3b-\x7e]+", client_id) is not None


def check_client_id(client_id: str | None) -> None:
    """Raise ValueError for what cannot be the id of an app."""
    if client_id is not None and not is_client_id(client_id):
        raise ValueError("client_id: expected the id of an app, as Spotify's dashboard shows it")


def since_in_utc(since: datetime, *, name: str = "since") -> datetime:
    """Return the start of a period in UTC.

    Raises:
        ValueError: it has no time zone, or is of no year from 1 to 9999.
    """
    with suppress(OverflowError):
        if since.utcoffset() is not None:
            return since.astimezone(UTC)
    raise ValueError(f"{name}: expected a time with a time zone, of the years 1 to 9999 in UTC")


def check_connected_at(connected_at: datetime | None) -> None:
    """Raise ValueError for a `connected_at` that names no moment."""
    if connected_at is not None and connected_at.tzinfo is None:
        raise ValueError("connected_at: expected a datetime with a time zone")


def several(values: Iterable[str], *, name: str) -> tuple[str, ...]:
    """Return the strings of an argument; ValueError for a single one, which would be taken letter by letter."""
    if isinstance(values, str) or not isinstance(values, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]  callers err
        raise ValueError(f"{name}: expected several strings, not one")  # noqa: TRY004  bad input is a ValueError here
    return tuple(values)


def checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes to ask a user for; ValueError for what names none (RFC 6749, section 3.3)."""
    names = several(scopes, name="scopes")
    if not all(map(_is_scope, names)):
        raise ValueError("scopes: expected words such as user-read-email")
    return names


def _is_scope(name: object) -> bool:
    return isinstance(name, str) and name != "" and name.isascii() and name.isprintable() and " " not in name
