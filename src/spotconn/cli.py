"""The command `spotconn`.

Exit codes: 0 done; 1 `doctor` found something to mend; 2 wrong usage; 3 the user must connect; 4 try later;
5 settings, schema, grants or keys are wrong; 6 the output cannot be written; 7 `rekey` or `migrate` is done but
for some rows; 130 stopped with Ctrl-C. Results go to standard output, all else to standard error.
"""

import os
from typing import Annotated, cast

import typer

from spotconn._command.console import duration, moment, open_admin, run, write_list
from spotconn._command.migrate import migrate
from spotconn._command.one_user import USER_HELP, disconnect_user, move_connection, status_of, token_of
from spotconn._command.output import (
    ROWS_LEFT,
    UNHEALTHY,
    fail,
    output_errors,
    print_line,
    write,
    write_field,
    write_json,
    write_line,
)
from spotconn._command.rekey import rekey_with_bar, rows_left
from spotconn._command.report import report
from spotconn._command.schema import Parts, apply_schema, check_options, check_schema
from spotconn._database.schema import schema_sql
from spotconn._printable import LONGEST_FIELD, LONGEST_SCOPES
from spotconn._settings import read_retired_client_ids
from spotconn.cipher import AesGcmSivCipher
from spotconn.overview import ConnectionStats

app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks would print local variables
    help="Stored Spotify connections: the database, the keys and the users' tokens.",
    epilog="Exit codes: 0 done, 1 doctor found something to mend, 2 wrong usage, 3 the user must connect, "
    "4 try later, 5 settings, schema, grants or keys are wrong, 6 the output cannot be written, "
    "7 rekey or migrate is done but for some rows, 130 stopped with Ctrl-C.",
)


def main() -> None:
    """Run the command. Help ends like a result where it cannot be written."""
    with output_errors():
        app(prog_name="spotconn")


User = Annotated[str, typer.Argument(metavar="USER", help=USER_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs; lists print one object per line.")]
app.command()(migrate)


@app.command()
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
    check_options(
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
            apply_schema(parts, client_id, owner), stopped="stopped; spotconn schema --check says what was applied"
        )
        write_json(done) if as_json else write(done.text())
    elif check:
        found = run(check_schema(close_writes=close_writes, lock_down=lock_down))
        write_json(found) if as_json else write(found.text())
    else:
        write(schema_sql(**parts, transaction=not no_transaction))


@app.command()
def doctor(*, as_json: Json = False) -> None:
    """Look at settings, database, row security, rights and clocks, and say what mends what is wrong."""
    if run(report(os.environ, as_json=as_json)):
        raise typer.Exit(UNHEALTHY)


@app.command()
def keygen(*, as_json: Json = False) -> None:
    """Print a new encryption key for SPOTCONN_ENCRYPTION_KEYS."""
    key = AesGcmSivCipher.generate_key()
    key_id = run(_key_id(key))
    if as_json:
        write_json({"id": key_id, "key": key})
        return
    write_line(key)
    print_line(f"its id is {key_id}; keep the older keys behind it until `spotconn rekey` is done")


async def _key_id(key: str) -> str:
    return AesGcmSivCipher([key]).key_ids[0]


@app.command()
def status(user: User, *, as_json: Json = False) -> None:
    """Show a user's connection without its tokens."""
    found = run(status_of(user))
    if as_json:
        write_json(found)
        return
    for name, value in found.model_dump(mode="json", exclude_none=True).items():
        text = " ".join(sorted(cast("list[str]", value))) if isinstance(value, list) else value
        write_field(name.replace("_", " "), text, longest=LONGEST_SCOPES if name == "scope" else LONGEST_FIELD)


@app.command()
def token(
    user: User,
    *,
    scope: Annotated[list[str] | None, typer.Option(help="A scope that must be granted; repeatable.")] = None,
    min_ttl: Annotated[float | None, typer.Option(help="Seconds that it must still be good for.")] = None,
    as_json: Json = False,
) -> None:
    """Print a valid access token, refreshed if it must be; for a pipe."""
    valid = run(token_of(user, scope or [], min_ttl))
    if as_json:
        write_json({"access_token": valid})
    else:
        write_line(valid)


@app.command()
def disconnect(user: User, *, as_json: Json = False) -> None:
    """Delete a user's connection. The user's consent at Spotify ends at www.spotify.com/account/apps only."""
    gone = run(disconnect_user(user))
    if as_json:
        write_json({"disconnected": gone})
    else:
        write_line("disconnected" if gone else "there was no connection")


@app.command()
def stats(*, as_json: Json = False) -> None:
    """Count the connections by state and app, and the stored tokens by key."""
    found = run(_stats())
    if as_json:
        write_json(found)
        return
    for name, number in found.model_dump(exclude={"by_key", "by_app"}).items():
        write_line(f"{name.replace('_', ' ')}: {number}")
    for key_id, number in found.by_key.items():
        write_field(f"under key {key_id}", number)
    for client_id, number in found.by_app.items():
        write_field(f"of app {client_id}", number)


async def _stats() -> ConnectionStats:
    async with open_admin() as admin:
        return await admin.stats()


@app.command()
def expiring(
    *,
    within: Annotated[str, typer.Option(help="Time from now, such as 30d, 2w or 12h.")] = "30d",
    as_json: Json = False,
) -> None:
    """List connections whose refresh token ends soon, or whose app is retired: users to be asked to connect again."""
    run(_expiring(within, as_json=as_json))


async def _expiring(within: str, *, as_json: bool) -> None:
    time, retired = duration(within), read_retired_client_ids(os.environ)
    async with open_admin() as admin:
        await write_list(admin.expiring(within=time, retired_client_ids=retired), as_json=as_json, retired=retired)


@app.command()
def failing(*, as_json: Json = False) -> None:
    """List connections whose last refresh failed, and why."""
    run(_failing(as_json=as_json))


async def _failing(*, as_json: bool) -> None:
    async with open_admin() as admin:
        await write_list(admin.failing(), as_json=as_json)


@app.command()
def rekey(*, as_json: Json = False) -> None:
    """Encrypt every stored token with the first of SPOTCONN_ENCRYPTION_KEYS; may be stopped and run again."""
    done = run(rekey_with_bar(), stopped="stopped; what was done stays done, run it again to go on")
    if as_json:
        write_json(done)
    else:
        write_line(f"{done.done} connections rewritten, {done.encrypted} of them from plain text")
    if done.remaining:
        fail(rows_left(done), ROWS_LEFT)


@app.command()
def recheck(
    *,
    since: Annotated[str, typer.Option(help="2026-11-24T10:00Z, or a time ago such as 2h.")],
    as_json: Json = False,
) -> None:
    """Let connections be tried again that Spotify has refused since then, after an outage."""
    count = run(_recheck(since), stopped="stopped; run it again to go on")
    if as_json:
        write_json({"rechecked": count})
    else:
        write_line(f"{count} connections will be tried again")


async def _recheck(since: str) -> int:
    start = moment(since)
    async with open_admin() as admin:
        return await admin.recheck(since=start)


@app.command()
def assign_app(
    client_id: Annotated[str, typer.Argument(metavar="CLIENT_ID", help="Of the app, as Spotify's dashboard shows it.")],
    *,
    as_json: Json = False,
) -> None:
    """Record the app of all connections whose app is not known, after an upgrade; may be run again."""
    count = run(_assign_app(client_id), stopped="stopped; what was done stays done, run it again to go on")
    if as_json:
        write_json({"assigned": count})
    else:
        write_line(f"{count} connections assigned to the app {client_id}")


async def _assign_app(client_id: str) -> int:
    async with open_admin() as admin:
        return await admin.assign_app(client_id)


@app.command()
def move(
    from_user: Annotated[str, typer.Argument(metavar="FROM", help="Who has the connection: as USER of the others.")],
    to_user: Annotated[str, typer.Argument(metavar="TO", help="Who gets it, likewise.")],
    *,
    as_json: Json = False,
) -> None:
    """Move a user's connection to another user who has none; also mends one that was moved by SQL."""
    moved = run(move_connection(from_user, to_user))
    if as_json:
        write_json({"moved": moved})
    else:
        write_line("moved" if moved else "there was no connection")
