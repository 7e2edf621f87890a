"""The command `spotconn mark-asked`: record users who are asked to connect again."""

import json
import sys
from typing import Annotated
from uuid import UUID

import typer

from spotconn._command.arguments import Json, read_user
from spotconn._command.console import open_admin, optional_moment, run
from spotconn._command.output import STOPPED, USAGE, fail, write_json, write_line
from spotconn._printable import counted


def mark_asked(
    users: Annotated[
        list[str] | None,
        typer.Argument(metavar="USER", help="As USER of the others; none: one a line on standard input."),
    ] = None,
    *,
    not_asked_since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only users who were not asked since: 2026-11-24T10:00Z, or 23d.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Record that users are asked to connect again, so that `expiring --not-asked-since` leaves them out."""
    piped = [] if users else _from_standard_input()
    count = run(_mark(users or [], piped, not_asked_since), stopped="stopped; some may be marked")
    if as_json:
        write_json({"marked": count})
    else:
        write_line(f"{counted(count, 'user')} marked")


async def _mark(named: list[str], piped: list[UUID], not_asked_since: str | None) -> int:
    users, since = [*map(read_user, named), *piped], optional_moment(not_asked_since)
    async with open_admin() as admin:
        return await admin.mark_asked(users, not_asked_since=since)


def _from_standard_input() -> list[UUID]:
    """Return the users of the lines: an id each, or what a list prints with `--json`."""
    if sys.stdin is None or sys.stdin.isatty():
        fail("no user is named: give ids as arguments, or one a line on standard input", USAGE)
    try:
        lines = sys.stdin.buffer.readlines()
    except KeyboardInterrupt:
        fail("stopped; nobody is marked", STOPPED)
    return [_user_of(line, number) for number, line in enumerate(lines, start=1) if line.strip()]


def _user_of(line: bytes, number: int) -> UUID:
    try:
        text = line.decode().strip()
        return read_user(json.loads(text)["user_id"] if text.startswith("{") else text)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        fail(f"line {number} of standard input: expected the id of a user, or a line of a list with --json", USAGE)
