"""Conversion of rows to what operators see of them."""

import asyncpg

from spotconn._database.rows import aware, connected_at, recorded_failure
from spotconn.overview import ConnectionOverview, ConnectionStats


def overview(row: asyncpg.Record) -> ConnectionOverview:
    """Return the overview of a row."""
    return ConnectionOverview(
        user_id=row["user_id"],
        spotify_user_id=row["spotify_user_id"],
        display_name=row["display_name"],
        email=row["email"],
        connected_at=connected_at(row),
        expires_at=aware(row["expires_at"]),
        client_id=row["client_id"],
        failure=recorded_failure(row),
        asked_at=row["asked_at"],
    )


def statistics(states: list[asyncpg.Record], keys: list[asyncpg.Record], apps: list[asyncpg.Record]) -> ConnectionStats:
    """Return the counts of the rows of `STATS`, `KEYS` and `APPS`."""
    by_key = {(row["marked"], row["key"]): row["count"] for row in keys}
    by_app = {row["client_id"]: row["count"] for row in apps}
    return ConnectionStats(
        **states[0],
        plain_text=by_key.pop((False, None), 0),
        damaged=by_key.pop((True, None), 0),
        by_key={key: count for (_, key), count in by_key.items()},
        app_unknown=by_app.pop(None, 0),
        by_app=by_app,
    )
