"""The command `spotconn migrate`: rows of another table become connections, and each can be verified by a refresh."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal, TypeAlias

import typer

from spotconn._command.console import moment, open_admin, run
from spotconn._command.fernet import fernet_decrypt
from spotconn._command.output import ROWS_LEFT, USAGE, fail, print_line, write_json, write_line
from spotconn._printable import shown
from spotconn.errors import AskUser, DecryptionError, SpotifyUnavailable
from spotconn.importing import verify_connection
from spotconn.manager import TokenManager
from spotconn.overview import MigratedRow

PACE = 0.2
"""Seconds from one refresh to the next at least."""

Outcome: TypeAlias = Literal["ready", "written", "present", "older", "unusable", "verified", "refused"]
_COUNTED: dict[Outcome, str] = {
    "ready": "would be written",
    "written": "written",
    "verified": "verified by a refresh, of those written now or before",
    "present": "left as they are: the user has a connection",
    "older": "left out: the user has a newer row",
    "unusable": "unusable",
    "refused": "refused by Spotify: the user must connect",
}


def migrate(
    *,
    source: Annotated[str, typer.Option("--from", help="The other table or view, as in SQL.")],
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="OURS=ITS", help="Its column for one of ours, or none at all; repeatable."),
    ] = None,
    connected_at: Annotated[
        str | None, typer.Option(help="When users authorized whose row does not say so, such as 2026-06-01T00:00Z.")
    ] = None,
    fernet_key_env: Annotated[str | None, typer.Option(help="A variable with the Fernet key of its tokens.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Write them; else they are only looked at.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --apply: verify each by a refresh, and fill in its Spotify account.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per row.")] = False,
) -> None:
    """Bring connections over from another table; may be run again, and leaves those that are there."""
    if verify and not apply:
        fail("--verify goes together with --apply: it may spend the refresh token", USAGE)
    mapping = dict(map(_pair, columns or ()))
    since = None if connected_at is None else moment(connected_at)

    async def bring_over() -> Counter[Outcome]:
        decrypt = None if fernet_key_env is None else fernet_decrypt(os.environ, fernet_key_env)
        async with open_admin() as admin, _open_tokens(verify=verify) as tokens:
            needs_account = apply and not verify  # a look does not know yet whether they are to be verified
            rows = admin.migrate(
                source, mapping, write=apply, connected_at=since, decrypt=decrypt, needs_account=needs_account
            )
            return await report_rows(rows, tokens, as_json=as_json)

    counts = run(bring_over(), stopped="stopped; what was done stays done, run it again to go on")
    if apply and (failing := counts["unusable"] + counts["refused"]):
        fail(f"{failing} rows give no connection that works; they are listed above", ROWS_LEFT)


def _pair(text: str) -> tuple[str, str]:
    ours, is_pair, its = text.partition("=")
    if not is_pair:
        fail("--map: expected OURS=ITS, such as refresh_token=its_column", USAGE)
    return ours.strip(), its


@asynccontextmanager
async def _open_tokens(*, verify: bool) -> AsyncGenerator[TokenManager | None]:
    if not verify:
        yield None
        return
    async with TokenManager.from_env() as tokens:
        yield tokens


async def report_rows(
    rows: AsyncIterator[MigratedRow], tokens: TokenManager | None, *, as_json: bool
) -> Counter[Outcome]:
    """Write what becomes of rows, and their numbers at the end; return the numbers.

    Args:
        rows: of `ConnectionAdmin.migrate`.
        tokens: verifies each connection; None where none is to be.
        as_json: for programs.

    Raises:
        SpotifyUnavailable: Spotify asks to wait, or does not answer.
    """
    counts, unknown, verifier = Counter[Outcome](), Counter[str](), Verifier(tokens)
    unavailable: SpotifyUnavailable | None = None
    try:
        async for row in rows:
            counts[row.state] += 1
            unknown.update(row.lacks if row.state in {"ready", "written"} else ())
            outcome, why = await verifier.verify(row)
            if outcome != row.state:
                counts[outcome] += 1
            _write_row(row, outcome, why, as_json=as_json)
    except SpotifyUnavailable as error:
        after = "later" if error.retry_after is None else f"after {error.retry_after:.0f} s"
        unavailable = SpotifyUnavailable(f"{error}; run it again {after}", retry_after=error.retry_after)
    finally:
        _write_counts(counts, unknown, as_json=as_json)
    if unavailable is not None:
        raise unavailable
    if not counts:
        print_line("the table has no rows")
    return counts


class Verifier:
    """Verifies connections by one refresh each, one after the other and at a bounded rate.

    Args:
        tokens: refreshes; None where nothing is to be verified.
    """

    def __init__(self, tokens: TokenManager | None) -> None:
        self._tokens = tokens
        self._due = 0.0

    async def verify(self, row: MigratedRow) -> tuple[Outcome, str]:
        """Return what has become of a row, and what speaks against it."""
        if self._tokens is None or row.user_id is None or row.state not in {"written", "present"}:
            return row.state, ", ".join(row.lacks)
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(self._due - clock(), 0))
        begun = clock()
        try:
            refreshed = await verify_connection(self._tokens, row.user_id)
        except AskUser as error:
            self._due = begun + PACE
            return "refused", str(error)
        except DecryptionError as error:  # one that stood before; the rows behind it are verified all the same
            return "unusable", str(error)
        if refreshed:
            self._due = begun + PACE
        return "verified" if refreshed else row.state, ""


def _write_row(row: MigratedRow, outcome: Outcome, why: str, *, as_json: bool) -> None:
    """Write a row: to people only one that gives no connection."""
    if as_json:
        write_json({"user_id": row.user_id and str(row.user_id), "key": row.key, "state": outcome, "lacks": row.lacks})
    elif outcome == "unusable":
        write_line(f"{shown(row.key)} is unusable: {shown(why)}")
    elif outcome == "refused":
        write_line(f"{shown(row.key)} is refused: {shown(why)}")


def _write_counts(counts: Counter[Outcome], unknown: Counter[str], *, as_json: bool) -> None:
    lines = [f"{text}: {counts[outcome]}" for outcome, text in _COUNTED.items() if counts[outcome]]
    lines += [f"of these, {name} is not known: {count}" for name, count in unknown.items()]
    for line in lines:
        (print_line if as_json else write_line)(line)
