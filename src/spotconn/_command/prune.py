"""The command `spotconn prune`: connections that give no token any more are counted, and deleted if one says so."""

import os
from typing import Annotated

import typer

from spotconn._command.arguments import Json
from spotconn._command.console import duration, open_admin, run
from spotconn._command.output import print_line, write_json, write_line
from spotconn._settings import read_retired_client_ids
from spotconn.overview import PruneProgress


def prune(
    *,
    dead_for: Annotated[str, typer.Option(help="Since the last refusal, save and token of each, such as 90d.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete them; else they are only counted.")] = False,
    as_json: Json = False,
) -> None:
    """Delete connections that Spotify has refused for good, or whose app is retired, for so long."""
    done = run(_prune(dead_for, write=yes), stopped="stopped; what was deleted is gone, run it again to go on")
    if as_json:
        write_json(done.model_dump() | {"deleted": yes})
        return
    for name, number in done.model_dump(exclude={"not_final", "too_recent"}).items():
        write_line(f"{name.replace('_', ' ')}: {number}")
    write_line(f"refused, but not for good: {done.not_final} (these stay)")
    write_line(f"dead, but not for so long: {done.too_recent} (these stay)")
    print_line(f"deleted: {done.total}" if yes else f"nothing was deleted; --yes deletes {done.total}")


async def _prune(dead_for: str, *, write: bool) -> PruneProgress:
    time, retired = duration(dead_for), read_retired_client_ids(os.environ)
    async with open_admin() as admin:
        return await admin.prune(dead_for=time, retired_client_ids=retired, write=write)
