"""The doctor's check that the database has the schema, in the version of this library."""

from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._database.errors import APPLY_SCHEMA
from spotconn._database.schema_version import SCHEMA_VERSION
from spotconn.errors import SchemaMismatch

SUBJECT = "schema"


async def check_schema_version(probe: Probe) -> Finding:
    """Compare the version that the database has with the one that this library needs."""
    try:
        version = await probe.value("select spotconn.schema_version()")
    except SchemaMismatch:
        return Finding(state="fail", subject=SUBJECT, text="this database does not have it", remedy=APPLY_SCHEMA)
    if version == SCHEMA_VERSION:
        return Finding(state="ok", subject=SUBJECT, text=f"version {version}")
    remedy = APPLY_SCHEMA if version < SCHEMA_VERSION else "upgrade spotconn"
    text = f"version {version}; this library needs {SCHEMA_VERSION}"
    return Finding(state="fail", subject=SUBJECT, text=text, remedy=remedy)
