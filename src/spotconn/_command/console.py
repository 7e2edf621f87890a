"""Run commands: their stores, their arguments, the lists that they write, and the exit codes of errors."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from pydantic import ValidationError

from spotconn._command.output import (
    ASK_USER,
    CALL_ENGINEER,
    STOPPED,
    TRY_LATER,
    USAGE,
    fail,
    print_line,
    write_json,
    write_line,
)
from spotconn._printable import counted, shown
from spotconn._settings import read_database_url, read_encryption, read_timeout
from spotconn.admin import ConnectionAdmin
from spotconn.cipher import AesGcmSivCipher, NoCipher, TokenColumn, cipher_for
from spotconn.errors import AskUser, SpotconnError, TryLater
from spotconn.overview import ConnectionOverview
from spotconn.store import ConnectionStore

_T = TypeVar("_T")

# A pooler may be in between, and a command runs each statement once: prepared statements would not pay.
_POOL: dict[str, Any] = {"max_size": 1, "statement_cache_size": 0}

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def run(work: Coroutine[Any, Any, _T], *, stopped: str = "stopped") -> _T:
    """Run a command and return its result. An error ends the process with one line and an exit code.

    Args:
        work: the command; Ctrl-C cancels it, and it cleans up.
        stopped: the line for Ctrl-C.
    """
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        fail(stopped, STOPPED)
    except SpotconnError as error:
        fail(str(error), _code(error))
    except (UnicodeError, ValidationError) as error:  # of a stored value, not of an argument
        fail(f"unexpected {type(error).__name__}: a stored value cannot be shown; please report it", CALL_ENGINEER)
    except ValueError as error:
        fail(str(error), USAGE)


def _code(error: SpotconnError) -> int:
    if isinstance(error, AskUser):
        return ASK_USER
    return TRY_LATER if isinstance(error, TryLater) else CALL_ENGINEER


def open_store() -> AbstractAsyncContextManager[ConnectionStore]:
    """Open the store that the environment names, for what needs no token."""
    return ConnectionStore.open(
        read_database_url(os.environ), cipher=_Unread(), timeout=read_timeout(os.environ), **_POOL
    )


def open_admin() -> AbstractAsyncContextManager[ConnectionAdmin]:
    """Open the admin of the database that the environment names."""
    return ConnectionAdmin.open(
        read_database_url(os.environ), cipher=_cipher(), timeout=read_timeout(os.environ), **_POOL
    )


class _Unread(NoCipher):
    """Leaves the tokens of a row unread, so that no keys are needed."""

    def decrypt(self, stored: str, *, user_id: UUID, column: TokenColumn) -> str:  # noqa: ARG002
        """Return nothing."""
        return ""


def _cipher() -> AesGcmSivCipher | None:
    settings = read_encryption(os.environ)
    return cipher_for(settings["encryption_keys"], require_encrypted=settings["require_encrypted"])


async def write_list(
    connections: AsyncIterator[ConnectionOverview], *, as_json: bool, retired: Collection[str] = ()
) -> None:
    """Write connections one to a line, and their number at the end.

    Args:
        connections: to write.
        as_json: for programs.
        retired: client ids of apps that are given up for good.
    """
    count = 0
    async for overview in connections:
        count += 1
        if as_json:
            write_json(overview.model_dump() | {"reauthorize_by": overview.reauthorize_by})
        else:
            write_line(_row(overview, retired))
    print_line(counted(count, "connection"))


def _row(overview: ConnectionOverview, retired: Collection[str]) -> str:
    due = "by unknown" if overview.reauthorize_by is None else f"by {overview.reauthorize_by:%Y-%m-%d}"
    if overview.client_id in retired:
        due = "now, its app is retired"
    failed = overview.failure
    failure = "" if failed is None else f"  {failed.reason} since {failed.since:%Y-%m-%d %H:%M} UTC"
    return f"{overview.user_id}  connect again {due}{failure}  {shown(overview.spotify_user_id)}"


def duration(text: str) -> timedelta:
    """Parse "30d", "12h", "90m" or "2w"."""
    parts = re.fullmatch(r"(\d{1,5})([mhdw])", text.strip())
    if parts is None:
        fail(f"{text!r} is no length of time: expected such as 30d, 2w, 12h or 90m", USAGE)
    return timedelta(**{_UNITS[parts[2]]: int(parts[1])})


def optional_moment(text: str | None) -> datetime | None:
    """Parse the time of an option that may be left out."""
    return None if text is None else moment(text)


def moment(text: str) -> datetime:
    """Parse an ISO 8601 time with its zone, or a length of time, which counts back from now."""
    if re.fullmatch(r"\d+[mhdw]", text.strip()):
        return datetime.now(UTC) - duration(text)
    try:
        parsed = datetime.fromisoformat(text.strip())
    except ValueError:
        fail(f"{text!r} is no time: expected such as 2026-11-24T10:00Z, or 2h for two hours ago", USAGE)
    if parsed.utcoffset() is None:
        fail(f"{text!r} has no time zone: put Z behind it for UTC", USAGE)
    return parsed
