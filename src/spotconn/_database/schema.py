"""The SQL files that ship with the library."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from spotconn._database.errors import APPLY_SCHEMA
from spotconn.errors import SchemaMismatch

SCHEMA_VERSION = 3
"""The version of the schema that this library needs, as `spotconn.schema_version()` returns it."""

SqlFile = Literal["schema.sql", "plain_postgres.sql", "lock_down.sql", "lock_down_undo.sql"]


def check_version(version: int) -> None:
    """Raise SchemaMismatch unless the database has the version that this library needs."""
    if version != SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has version {version} of the schema, this library needs {SCHEMA_VERSION}: "
            + (APPLY_SCHEMA if version < SCHEMA_VERSION else "upgrade spotconn")
        )


def read_sql(name: SqlFile) -> str:
    """Return the text of a shipped SQL file; an editable install reads the file of its checkout."""
    packaged = files("spotconn") / "sql"
    folder: Traversable = packaged if packaged.is_dir() else Path(__file__).parents[3] / "sql"
    return (folder / name).read_text(encoding="utf-8")
