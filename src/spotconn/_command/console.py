"""How the command speaks: results to standard output, errors in one line to standard error, and its exit codes."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel

from spotconn._settings import read_database_url, read_encryption
from spotconn.admin import ConnectionAdmin
from spotconn.cipher import AesGcmSivCipher, cipher_for
from spotconn.errors import AskUser, SpotconnError, TryLater
from spotconn.overview import ConnectionOverview
from spotconn.store import ConnectionStore

_T = TypeVar("_T")

UNHEALTHY, USAGE, ASK_USER, TRY_LATER, CALL_ENGINEER, STOPPED = 1, 2, 3, 4, 5, 130

# A pooler may be in between, and a command asks each question once: no statement is worth keeping.
_POOL: dict[str, Any] = {"max_size": 1, "statement_cache_size": 0}

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def run(work: Coroutine[Any, Any, _T], *, stopped: str = "stopped") -> _T:
    """The result of a command's work; an error ends the command with its line and its code.

    Args:
        work: is cancelled by Ctrl-C and cleans up.
        stopped: what is said then.
    """
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        fail(stopped, STOPPED)
    except BrokenPipeError:
        # Whoever read the output has gone: there is nobody to tell, at the end of the interpreter neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except SpotconnError as error:
        fail(str(error), _code(error))
    except ValueError as error:
        fail(str(error), USAGE)


def _code(error: SpotconnError) -> int:
    if isinstance(error, AskUser):
        return ASK_USER
    return TRY_LATER if isinstance(error, TryLater) else CALL_ENGINEER


def fail(text: str, code: int) -> NoReturn:
    """End the command with one line on standard error."""
    say(f"spotconn: {' '.join(text.split())}")
    sys.exit(code)


def say(text: str) -> None:
    """A line for a person, beside the result."""
    sys.stderr.write(text + "\n")


def write(text: str) -> None:
    """A part of the result."""
    sys.stdout.write(text)


def write_json(value: BaseModel | dict[str, Any]) -> None:
    """A value as one line of JSON."""
    write((json.dumps(value) if isinstance(value, dict) else value.model_dump_json()) + "\n")


def open_store() -> AbstractAsyncContextManager[ConnectionStore]:
    """The store that the environment names."""
    return ConnectionStore.open(read_database_url(os.environ), cipher=_cipher(), **_POOL)


def open_admin() -> AbstractAsyncContextManager[ConnectionAdmin]:
    """The admin of the database that the environment names."""
    return ConnectionAdmin.open(read_database_url(os.environ), cipher=_cipher(), **_POOL)


def _cipher() -> AesGcmSivCipher | None:
    settings = read_encryption(os.environ)
    return cipher_for(settings["encryption_keys"], require_encrypted=settings["require_encrypted"])


async def write_list(listed: AsyncIterator[ConnectionOverview], *, as_json: bool) -> None:
    """Connections as they come, one a line, and their number at the end."""
    count = 0
    async for one in listed:
        count += 1
        if as_json:
            due = one.reauthorize_by
            write_json(one.model_dump(mode="json") | {"reauthorize_by": due and due.isoformat()})
        else:
            write(_row(one))
    say(f"{count} connections")


def _row(one: ConnectionOverview) -> str:
    due = "unknown" if one.reauthorize_by is None else f"{one.reauthorize_by:%Y-%m-%d}"
    failure = "" if one.failure is None else f"  {one.failure.reason} since {one.failure.since:%Y-%m-%d %H:%M} UTC"
    return f"{one.user_id}  connect again by {due}{failure}  {one.spotify_user_id}\n"


def duration(text: str) -> timedelta:
    """Of "30d", "12h", "90m" or "2w"."""
    parts = re.fullmatch(r"(\d{1,5})([mhdw])", text.strip())
    if parts is None:
        fail(f"{text!r} is no length of time: expected such as 30d, 2w, 12h or 90m", USAGE)
    return timedelta(**{_UNITS[parts[2]]: int(parts[1])})


def moment(text: str) -> datetime:
    """Of an ISO 8601 time with its zone, or of a length of time ago."""
    if re.fullmatch(r"\d+[mhdw]", text.strip()):
        return datetime.now(UTC) - duration(text)
    try:
        parsed = datetime.fromisoformat(text.strip())
    except ValueError:
        fail(f"{text!r} is no time: expected such as 2026-11-24T10:00Z, or 2h for two hours ago", USAGE)
    if parsed.utcoffset() is None:
        fail(f"{text!r} has no time zone: put Z behind it for UTC", USAGE)
    return parsed
