"""The command `spotconn recheck`: let connections be tried again that Spotify refused during an outage."""

from typing import Annotated

import typer

from spotconn._command.arguments import Json
from spotconn._command.console import moment, open_admin, run
from spotconn._command.output import write_json, write_line
from spotconn._printable import counted


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
        write_line(f"{counted(count, 'connection')} will be tried again")


async def _recheck(since: str) -> int:
    start = moment(since)
    async with open_admin() as admin:
        return await admin.recheck(since=start)
