"""The command `spotconn migrate`: rows of another table become connections, and each can be verified by a refresh."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal, TypeAlias
from uuid import UUID

import typer

from spotconn._command.console import moment, open_admin, run
from spotconn._command.fernet import fernet_decrypt
from spotconn._command.output import ROWS_LEFT, USAGE, fail, print_line, write_json, write_line
from spotconn._printable import counted, shown
from spotconn.errors import AskUser, DecryptionError, SpotifyUnavailable, StatementRefused
from spotconn.importing import verify_connection
from spotconn.manager import TokenManager
from spotconn.overview import MigratedRow

PACE = 0.2
"""Seconds from one refresh to the next at least."""

Outcome: TypeAlias = Literal["ready", "written", "present", "older", "unverified", "unusable", "verified", "refused"]
_COUNTED: dict[Outcome, str] = {
    "ready": "would be written",
    "written": "written",
    "verified": "verified by a refresh, of those written now or before",
    "present": "left as they are: the user has a connection",
    "older": "left out: the user has a newer row",
    "unverified": "would be written with --verify (spotify_user_id is not known)",
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
        bool, typer.Option("--verify", help="Verify each by a refresh once it is written, and fill in its account.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per row.")] = False,
) -> None:
    """Bring connections over from another table; may be run again, and leaves those that are there."""
    mapping = dict(map(_pair, columns or ()))
    since = None if connected_at is None else moment(connected_at)

    async def bring_over() -> Counter[Outcome]:
        decrypt = None if fernet_key_env is None else fernet_decrypt(os.environ, fernet_key_env)
        async with open_admin() as admin, _open_tokens(verify=apply and verify) as tokens:
            rows = admin.migrate(
                source, mapping, write=apply, connected_at=since, decrypt=decrypt, needs_account=not verify
            )
            return await report_rows(rows, tokens, as_json=as_json)

    counts = run(bring_over(), stopped="stopped; what was done stays done, run it again to go on")
    if apply and (failing := counts["unusable"] + counts["unverified"] + counts["refused"]):
        fail(f"{counted(failing, 'row gives', 'rows give')} no connection that works; see above", ROWS_LEFT)


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
    report, verifier = _Report(as_json=as_json), None if tokens is None else Verifier(tokens)
    unavailable: SpotifyUnavailable | None = None
    try:
        # All are written before one is verified, so that the numbers of a run that ends early are those of the table.
        async for row in rows:
            report.add(row, waits=verifier is not None)
        if verifier is not None:
            await report.verify(verifier)
    except SpotifyUnavailable as error:
        after = "later" if error.retry_after is None else f"after {error.retry_after:.0f} s"
        unavailable = SpotifyUnavailable(f"{error}; run it again {after}", retry_after=error.retry_after)
    finally:
        report.end()
    if unavailable is not None:
        raise unavailable
    if not report.counts:
        print_line("the table has no rows")
    return report.counts


class _Report:
    """Writes what becomes of rows, and counts them.

    Args:
        as_json: for programs.

    Attributes:
        counts: of rows by what has become of them; one that was verified or refused counts as written, too.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._unknown = Counter[str]()
        # Written, or there before, and not verified yet; the next one is the last.
        self._waiting = list[MigratedRow]()
        self.counts = Counter[Outcome]()

    def add(self, row: MigratedRow, *, waits: bool) -> None:
        """Count a row, and write it unless it waits to be verified."""
        needs_account = row.state == "unusable" and row.lacks == ("spotify_user_id",)
        outcome: Outcome = "unverified" if needs_account else row.state
        self.counts[outcome] += 1
        if waits and row.state in {"written", "present"}:
            self._waiting.append(row)
        else:
            self._write(row, outcome, ", ".join(row.lacks))

    async def verify(self, verifier: "Verifier") -> None:
        """Verify the rows that wait, in their order."""
        self._waiting.reverse()
        while self._waiting:
            row, outcome, why = await verifier.verify(self._waiting[-1])
            self._waiting.pop()
            if outcome != row.state:
                self.counts[outcome] += 1
            self._write(row, outcome, why)

    def end(self) -> None:
        """Write the rows that were not verified any more, and the numbers."""
        for row in self._waiting:
            self._write(row, row.state, "")
        _write_counts(self.counts, self._unknown, as_json=self._as_json)

    def _write(self, row: MigratedRow, outcome: Outcome, why: str) -> None:
        self._unknown.update(row.lacks if row.state in {"ready", "written"} else ())
        _write_row(row, outcome, why, as_json=self._as_json)


class Verifier:
    """Verifies connections by one refresh each, one after the other and at a bounded rate.

    Args:
        tokens: refreshes.
    """

    def __init__(self, tokens: TokenManager) -> None:
        self._tokens = tokens
        self._due = 0.0

    async def verify(self, row: MigratedRow) -> tuple[MigratedRow, Outcome, str]:
        """Return a row with what is still not known of it, what has become of it, and what speaks against it."""
        assert row.user_id is not None  # noqa: S101  it has a connection
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(self._due - clock(), 0))
        begun = clock()
        try:
            refreshed = await verify_connection(self._tokens, row.user_id)
        except AskUser as error:
            self._due = begun + PACE
            return row, "refused", str(error)
        except StatementRefused as error:  # by a constraint on the account, such as that of one user for each
            self._due = begun + PACE
            return await self._now_known(row, row.user_id), "unusable", str(error)
        except DecryptionError as error:  # one that stood before; the rows behind it are verified all the same
            return row, "unusable", str(error)
        if refreshed:
            self._due = begun + PACE
        return await self._now_known(row, row.user_id), "verified" if refreshed else row.state, ""

    async def _now_known(self, row: MigratedRow, user_id: UUID) -> MigratedRow:
        if not row.lacks:
            return row
        stored = await self._tokens.store.get(user_id)
        lacks = tuple(name for name in row.lacks if getattr(stored, name) in {None, ""})
        return row.model_copy(update={"lacks": lacks})


def _write_row(row: MigratedRow, outcome: Outcome, why: str, *, as_json: bool) -> None:
    """Write a row: to people only one that gives no connection."""
    if as_json:
        write_json({"user_id": row.user_id and str(row.user_id), "key": row.key, "state": outcome, "lacks": row.lacks})
    elif outcome in {"unusable", "refused"}:
        write_line(f"{shown(row.key)} is {outcome}: {shown(why)}")


def _write_counts(counts: Counter[Outcome], unknown: Counter[str], *, as_json: bool) -> None:
    lines = [f"{text}: {counts[outcome]}" for outcome, text in _COUNTED.items() if counts[outcome]]
    lines += [f"of these, {name} is not known: {count}" for name, count in unknown.items()]
    for line in lines:
        (print_line if as_json else write_line)(line)
