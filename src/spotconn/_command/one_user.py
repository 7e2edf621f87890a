"""The commands for one user: `spotconn status`, `token`, `disconnect` and `move`."""

import os
from typing import Annotated

import typer

from spotconn._command.arguments import Json, User, read_scopes, read_user
from spotconn._command.console import open_admin, open_store, run
from spotconn._command.output import plain, write_field, write_json, write_line
from spotconn._printable import LONGEST_FIELD, LONGEST_SCOPES
from spotconn._settings import read_retired_client_ids
from spotconn._tokens.status import ConnectionStatus
from spotconn.errors import NotConnected
from spotconn.manager import TokenManager


def status(user: User, *, as_json: Json = False) -> None:
    """Show a user's connection without its tokens."""
    write_status(run(_status(user)), as_json=as_json)


def write_status(found: ConnectionStatus, *, as_json: bool) -> None:
    """Write what is shown of a user's connection.

    Args:
        found: to write.
        as_json: for programs.
    """
    if as_json:
        write_json(found)
        return
    for name, value in found.model_dump(exclude_none=True).items():
        shown = plain(value)
        text = " ".join(shown) if isinstance(shown, list) else shown
        write_field(name.replace("_", " "), text, longest=LONGEST_SCOPES if name == "scope" else LONGEST_FIELD)


async def _status(user: str) -> ConnectionStatus:
    found, retired = read_user(user), read_retired_client_ids(os.environ)
    async with open_store() as store:
        try:
            return ConnectionStatus.of(await store.get(found), retired_client_ids=retired)
        except NotConnected:
            return ConnectionStatus(connected=False)


def token(
    user: User,
    *,
    scope: Annotated[list[str] | None, typer.Option(help="A scope that must be granted; repeatable.")] = None,
    min_ttl: Annotated[float | None, typer.Option(help="Seconds that it must still be good for.")] = None,
    as_json: Json = False,
) -> None:
    """Print a valid access token, refreshed if it must be; for a pipe."""
    valid = run(_token(user, scope, min_ttl))
    if as_json:
        write_json({"access_token": valid})
    else:
        write_line(valid)


async def _token(user: str, scopes: list[str] | None, min_ttl: float | None) -> str:
    found, needed = read_user(user), read_scopes(scopes)
    async with TokenManager.from_env() as tokens:
        return await tokens.get_valid_token(found, scopes=needed, min_ttl=min_ttl)


def disconnect(user: User, *, as_json: Json = False) -> None:
    """Delete a user's connection. The user's consent at Spotify ends at www.spotify.com/account/apps only."""
    gone = run(_disconnect(user))
    if as_json:
        write_json({"disconnected": gone})
    else:
        write_line("disconnected" if gone else "there was no connection")


async def _disconnect(user: str) -> bool:
    found = read_user(user)
    async with open_store() as store:
        return await store.delete(found)


def move(
    from_user: Annotated[str, typer.Argument(metavar="FROM", help="Who has the connection: as USER of the others.")],
    to_user: Annotated[str, typer.Argument(metavar="TO", help="Who gets it, likewise.")],
    *,
    as_json: Json = False,
) -> None:
    """Move a user's connection to another user who has none; also mends one that was moved by SQL."""
    moved = run(_move(from_user, to_user))
    if as_json:
        write_json({"moved": moved})
    else:
        write_line("moved" if moved else "there was no connection")


async def _move(from_user: str, to_user: str) -> bool:
    former, latter = read_user(from_user, "FROM"), read_user(to_user, "TO")
    async with open_admin() as admin:
        return await admin.move(former, latter)
