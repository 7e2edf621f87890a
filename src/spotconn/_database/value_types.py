"""The types of values that pass between the library and Postgres: a pool's codecs may change them all."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import asyncpg

from spotconn._database.idle_sessions import Session
from spotconn._database.repetition import answer
from spotconn.errors import ConfigurationError, SpotconnError, StatementRefused


class _Sample(NamedTuple):
    """What a constant of SQL is in Python."""

    value: object
    constant: str


_ID = UUID("00000000-0000-0000-0000-000000000001")
_SAMPLES: dict[str, _Sample] = {
    "uuid": _Sample(_ID, f"'{_ID}'::uuid"),
    "text": _Sample("text", "'text'::text"),
    "text[]": _Sample(["text"], "array['text'::text]"),
    "timestamptz": _Sample(datetime(2026, 3, 29, 1, 2, 3, tzinfo=UTC), "'2026-03-29 01:02:03Z'::timestamptz"),
    "interval": _Sample(timedelta(seconds=90), "'90 seconds'::interval"),
    "bytea": _Sample(b"\0\xff", "decode('00ff', 'hex')"),
    "float8": _Sample(0.5, "0.5::float8"),
    "bool": _Sample(value=True, constant="true"),
    "int4": _Sample(7, "7"),
    "int8": _Sample(7, "7::int8"),
}
"""Of each type that a statement of the library takes or gives."""


async def check_types(session: Session, *, seconds: float) -> None:
    """Check that values of all types arrive as they are sent, in one statement.

    Args:
        session: of the pool.
        seconds: for the answer.

    Raises:
        ConfigurationError: codecs or the record class of the pool change them; the text names the types.
        SpotconnError: the check itself cannot be made, as `map_errors`.
    """
    if await _arrive(session, list(_SAMPLES), seconds):
        return
    changed = [name for name in _SAMPLES if not await _arrive(session, [name], seconds)]
    raise ConfigurationError(
        f"the pool has codecs, or a record class, with which values do not arrive as they are sent "
        f"({', '.join(changed)}): give the store a pool of its own without them"
    )


async def _arrive(session: Session, names: list[str], seconds: float) -> bool:
    samples = [_SAMPLES[name] for name in names]
    sent = " and ".join(f"${place}::{name} = {_SAMPLES[name].constant}" for place, name in enumerate(names, 1))
    columns = ", ".join(f"{sample.constant} as value_{place}" for place, sample in enumerate(samples))
    values = [sample.value for sample in samples]
    try:
        query = f"select {columns}, ({sent})::int as sent"
        row = await answer(session, query, lambda rest: session.fetchrow(query, *values, timeout=rest), seconds=seconds)
        return row is not None and _are_equal(row, [*values, 1])
    except StatementRefused:  # as asyncpg names a value that an encoder does not take
        return False
    except SpotconnError:
        raise
    except Exception:  # noqa: BLE001  a codec of the caller's may raise anything
        return False


def _are_equal(row: asyncpg.Record, values: list[object]) -> bool:
    """Return whether a row holds values, by place and by name."""
    by_place = [row[place] for place in range(len(values))]
    by_name = [row[name] for name in dict(row)]
    return all(
        isinstance(found, type(value)) and found == value
        for given in (by_place, by_name)
        for found, value in zip(given, values, strict=True)
    )
