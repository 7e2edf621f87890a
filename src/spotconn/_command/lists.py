"""The commands about the connections of all users: `spotconn stats`, `expiring` and `failing`."""

import os
from typing import Annotated

import typer

from spotconn._command.arguments import Json
from spotconn._command.console import duration, open_admin, optional_moment, run, write_list
from spotconn._command.output import write_field, write_json, write_line
from spotconn._settings import read_retired_client_ids
from spotconn.overview import ConnectionStats


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


def expiring(
    *,
    within: Annotated[str, typer.Option(help="Time from now, such as 30d, 2w or 12h.")] = "30d",
    not_asked_since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only users whom mark-asked has not recorded since then.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List connections whose refresh token ends soon, or whose app is retired: users to be asked to connect again."""
    run(_expiring(within, not_asked_since, as_json=as_json))


async def _expiring(within: str, not_asked_since: str | None, *, as_json: bool) -> None:
    time, retired, since = duration(within), read_retired_client_ids(os.environ), optional_moment(not_asked_since)
    async with open_admin() as admin:
        found = admin.expiring(within=time, retired_client_ids=retired, not_asked_since=since)
        await write_list(found, as_json=as_json, retired=retired)


def failing(
    *,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only failures that began since: 2026-11-24T10:00Z, or 2h.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List connections whose last refresh failed, and why."""
    run(_failing(since, as_json=as_json))


async def _failing(since: str | None, *, as_json: bool) -> None:
    start = optional_moment(since)
    async with open_admin() as admin:
        await write_list(admin.failing(since=start), as_json=as_json)
