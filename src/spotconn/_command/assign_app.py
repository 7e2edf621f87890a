"""The command `spotconn assign-app`: record the app of connections whose app is not known."""

from typing import Annotated

import typer

from spotconn._command.arguments import Json
from spotconn._command.console import open_admin, run
from spotconn._command.output import write_json, write_line
from spotconn._printable import counted


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
        write_line(f"{counted(count, 'connection')} assigned to the app {client_id}")


async def _assign_app(client_id: str) -> int:
    async with open_admin() as admin:
        return await admin.assign_app(client_id)
