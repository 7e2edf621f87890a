"""The command `spotconn schema`: print the SQL, apply it, or check that it is applied."""

import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, TypedDict

import asyncpg
import typer
from pydantic import BaseModel

from spotconn._arguments import check_client_id
from spotconn._command.arguments import Json
from spotconn._command.console import open_admin, run
from spotconn._command.output import USAGE, fail, print_line, write, write_json
from spotconn._database.acquire import acquire
from spotconn._database.application import apply, level, look
from spotconn._database.errors import APPLY_SCHEMA
from spotconn._database.idle_sessions import Session
from spotconn._database.pool import close_pool, open_pool
from spotconn._database.schema import files_to_apply, schema_sql
from spotconn._database.schema_version import SCHEMA_VERSION, check_version
from spotconn._database.verification import check_encoding
from spotconn._printable import counted, printable
from spotconn._settings import read_database_url, read_timeout
from spotconn.errors import ConfigurationError, SchemaMismatch
from spotconn.store import ConnectionStore

LOCK_DOWN = "spotconn schema --apply --lock-down"
CLOSE_WRITES = "spotconn schema --apply --close-writes"

# No prepared statements: a pooler may be in between.
_POOL: dict[str, Any] = {"max_size": 1, "statement_cache_size": 0}


class Parts(TypedDict):
    """The choice of SQL files: arguments of `spotconn.schema_sql`."""

    plain_postgres: bool
    users: str | None
    close_writes: bool
    lock_down: bool
    undo_lock_down: bool


class Applied(BaseModel):
    """What was applied.

    Attributes:
        before: what the database had.
        files: that were applied, in their order.
        version: of the schema that it has now.
        assigned: connections whose app was recorded; None where that was not asked for.
    """

    before: str
    files: list[str]
    version: int
    assigned: int | None = None

    def text(self) -> str:
        """Return it for people."""
        assigned = "" if self.assigned is None else f"{counted(self.assigned, 'connection')} assigned to the app\n"
        return f"applied {', '.join(self.files)}: version {self.version} (before: {self.before})\n{assigned}"


class Checked(BaseModel):
    """What a database has that passed the check.

    Attributes:
        version: of the schema.
        locked_down: whether the client roles are without the tokens.
        writes_closed: whether they can write no row; so it is where they are without the tokens.
    """

    version: int
    locked_down: bool
    writes_closed: bool

    def text(self) -> str:
        """Return it for people."""
        return f"version {self.version}{level(locked_down=self.locked_down, writes_closed=self.writes_closed)}\n"


def schema(
    *,
    plain_postgres: Annotated[
        bool, typer.Option("--plain-postgres", help="Before it, what Supabase already has.")
    ] = False,
    users: Annotated[
        str | None, typer.Option(help="Your table of users, such as 'public.users(id bigint)': ties it to auth.users.")
    ] = None,
    close_writes: Annotated[bool, typer.Option("--close-writes", help="After it, clients write no row.")] = False,
    lock_down: Annotated[bool, typer.Option("--lock-down", help="After it, take the tokens from clients.")] = False,
    undo_lock_down: Annotated[bool, typer.Option("--undo-lock-down", help="Only the SQL that undoes either.")] = False,
    no_transaction: Annotated[bool, typer.Option("--no-transaction", help="Print no BEGIN and no COMMIT.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Apply it, also beside a running service.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; end with 5 if it is not applied.")] = False,
    client_id: Annotated[
        str | None, typer.Option(help="With --apply: the app of the connections whose app is not known.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="With --apply: a role that may own what is there.")] = None,
    as_json: Json = False,
) -> None:
    """Print the SQL of the schema, apply it to the database of DATABASE_URL, or check that it is applied."""
    parts = Parts(
        plain_postgres=plain_postgres,
        users=users,
        close_writes=close_writes,
        lock_down=lock_down,
        undo_lock_down=undo_lock_down,
    )
    _check_options(
        parts,
        apply=apply,
        check=check,
        no_transaction=no_transaction,
        client_id=client_id,
        owner=owner,
        as_json=as_json,
    )
    if apply:
        done = run(
            _apply_schema(parts, client_id, owner), stopped="stopped; spotconn schema --check says what was applied"
        )
        write_json(done) if as_json else write(done.text())
    elif check:
        found = run(_check_schema(close_writes=close_writes, lock_down=lock_down))
        write_json(found) if as_json else write(found.text())
    else:
        write(schema_sql(**parts, transaction=not no_transaction))


def _check_options(
    parts: Parts,
    *,
    apply: bool,
    check: bool,
    no_transaction: bool,
    client_id: str | None,
    owner: str | None,
    as_json: bool,
) -> None:
    """End the command where its options do not go together."""
    undo = parts["undo_lock_down"]
    closes = parts["close_writes"] or parts["lock_down"]
    wrong = {
        "--apply and --check do not go together": apply and check,
        "--no-transaction is for the SQL that is printed": no_transaction and (apply or check),
        "--undo-lock-down and --lock-down do not go together": undo and parts["lock_down"],
        "--undo-lock-down goes together with --apply alone": undo
        and (parts["plain_postgres"] or closes or not {parts["users"], client_id, owner} <= {None}),
        "--close-writes and --lock-down do not go together: the second closes the writes, too": (
            parts["close_writes"] and parts["lock_down"]
        ),
        "--check goes together with --close-writes and --lock-down alone": check
        and (parts["plain_postgres"] or undo or parts["users"] is not None),
        "--json goes together with --apply or --check: SQL is printed as it is": as_json and not (apply or check),
        "--client-id goes together with --apply": client_id is not None and not apply,
        "--owner goes together with --apply": owner is not None and not apply,
        "--owner: expected the name of a role": (
            owner is not None and not (owner.isprintable() and set(owner).isdisjoint("'\\"))
        ),
    }
    for text in (text for text, is_wrong in wrong.items() if is_wrong):
        fail(text, USAGE)
    try:
        schema_sql(**parts)
    except ValueError as error:
        fail(f"--{error}", USAGE)


async def _apply_schema(parts: Parts, client_id: str | None, owner: str | None) -> Applied:
    """Apply the schema to the database that the environment names, and say what was there.

    Args:
        parts: of the SQL. plain_postgres.sql is applied also where the database lacks what Supabase has.
        client_id: of the app to record afterwards for connections whose app is not known.
        owner: a role that may own what stood there before; several with commas between them.

    Raises:
        ValueError: the client id is malformed; nothing was applied.
        ConfigurationError: the database refuses it, or its encoding cannot hold every name.
        SchemaMismatch: the database has a newer version.
        RowSecurityError: the login may not become service_role, which `client_id` needs.
        DatabaseUnavailable: a lock was not to be had, or there was no answer in time.
    """
    check_client_id(client_id)
    async with _session() as session:
        before = await look(session, owner)
        print_line(f"found: {before}")
        if before.version is not None and before.version > SCHEMA_VERSION:
            check_version(before.version)
        check_encoding(before.encoding)
        if not (before.supabase or parts["plain_postgres"] or parts["undo_lock_down"]):
            print_line("this is no Supabase database, so plain_postgres.sql is applied first")
            parts = {**parts, "plain_postgres": True}
        names = files_to_apply(**parts)
        print_line(f"applies {', '.join(names)}")
        named = "" if owner is None else f"set local spotconn.owner = '{owner}';\n"
        with _messages_printed(session):
            await apply(session, named + schema_sql(**parts, transaction=False), waiting=_print_waiting)
        after = await look(session)
    assigned = None if client_id is None else await _assign(client_id)
    return Applied(before=str(before), files=list(names), version=after.version or 0, assigned=assigned)


def _print_waiting(holders: str) -> None:
    print_line(f"{holders}; tries again")


@contextmanager
def _messages_printed(session: Session) -> Generator[None]:
    """Context manager: print what the files say, such as a column that is converted or a right that is lacking."""
    session.add_log_listener(_print_message)
    try:
        yield
    finally:
        session.remove_log_listener(_print_message)


def _print_message(_session: object, message: asyncpg.PostgresLogMessage) -> None:
    text, hint = getattr(message, "message", ""), getattr(message, "hint", None) or ""
    if message.sqlstate == "01000":
        print_line(printable(f"warning: {text}. {hint}".rstrip()))
    elif message.severity_en == "NOTICE":
        print_line(printable(text))


async def _assign(client_id: str) -> int:
    async with open_admin() as admin:
        return await admin.assign_app(client_id)


async def _check_schema(*, close_writes: bool, lock_down: bool) -> Checked:
    """Check what `ConnectionStore.open` needs, and change nothing.

    Args:
        close_writes: whether the client roles must be unable to write.
        lock_down: whether the client roles must be without the tokens.

    Raises:
        SchemaMismatch: the schema is missing or of another version.
        ConfigurationError: it is not locked down, or writes are not closed; or as `ConnectionStore.open`.
        RowSecurityError, DatabaseUnavailable: as `ConnectionStore.open`.
    """
    async with _session() as session:
        found = await look(session)
    if found.version is None:
        first = "" if found.supabase else " (it applies plain_postgres.sql first: what Supabase has is missing)"
        raise SchemaMismatch(f"the database has {found}; {APPLY_SCHEMA}{first}")
    async with ConnectionStore.open(read_database_url(os.environ), timeout=read_timeout(os.environ), **_POOL):
        pass
    if lock_down and not found.locked_down:
        raise ConfigurationError(f"the database is not locked down: {LOCK_DOWN}")
    if close_writes and not found.writes_closed:
        raise ConfigurationError(f"clients can write tokens: {CLOSE_WRITES}")
    return Checked(version=found.version, locked_down=found.locked_down, writes_closed=found.writes_closed)


@asynccontextmanager
async def _session() -> AsyncGenerator[Session]:
    pool = await open_pool(read_database_url(os.environ), _POOL, seconds=read_timeout(os.environ))
    try:
        async with acquire(pool) as session:
            yield session
    finally:
        await close_pool(pool)
