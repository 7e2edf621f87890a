"""The version of the schema."""

from spotconn._database.errors import APPLY_SCHEMA
from spotconn.errors import SchemaMismatch

SCHEMA_VERSION = 3
"""The version of the schema that this library needs, as `spotconn.schema_version()` returns it."""


def check_version(version: int) -> None:
    """Raise SchemaMismatch unless the database has the version that this library needs."""
    if version != SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has version {version} of the schema, this library needs {SCHEMA_VERSION}: "
            + (APPLY_SCHEMA if version < SCHEMA_VERSION else "upgrade spotconn")
        )
