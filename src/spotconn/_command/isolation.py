"""The doctor's check that a user reaches no row of another, and what mends it where one does."""

from uuid import UUID, uuid4

from spotconn._command.catalog import INSERT_FOR_ANOTHER_USER, ROLE_OF_THE_LIBRARY
from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._command.read_only import SUBJECT as WRITING
from spotconn._database.errors import APPLY_SCHEMA
from spotconn._database.sqlstates import READ_ONLY

SUBJECT = "isolation"


async def check_isolation(probe: Probe) -> Finding:
    """Act as a user who does not exist, who must see, change and insert no row of another."""
    await probe.value("select spotconn.act_as($1)", uuid4())
    other: UUID = uuid4()
    visible = await probe.value("select pg_catalog.count(*) from public.spotify_connections")
    updated = await probe.attempt("update public.spotify_connections set email = email where true")
    # Policies are checked before foreign keys, so the id need not exist.
    inserted = await probe.attempt(INSERT_FOR_ANOTHER_USER, other)
    if (visible, updated, inserted) == (0, "UPDATE 0", "42501"):
        return Finding(state="ok", subject=SUBJECT, text="tried: a user sees, changes and makes no row of another")
    if not visible and READ_ONLY in {updated, inserted}:
        return Finding(
            state="skip",
            subject=SUBJECT,
            text=f"a user sees no row of another; changing and making one cannot be tried, see {WRITING}",
        )
    (role,) = await probe.rows(ROLE_OF_THE_LIBRARY)
    return Finding(
        state="fail",
        subject=SUBJECT,
        text=f"a user of this login reaches rows of others (seen {visible}, changed {updated}, made {inserted})",
        remedy=isolation_remedy(**role),
    )


def isolation_remedy(
    *, made_by_initdb: bool, superuser: bool, bypasses: bool, owns: bool, other_superuser: bool
) -> str:
    """Return what makes the policies bind the role `spotconn`, which the library acts as under any login.

    Args:
        made_by_initdb: whether the role is the first superuser, which cannot be demoted.
        superuser: whether it is one.
        bypasses: whether it has BYPASSRLS.
        owns: whether it owns the table, or is a member of the owner.
        other_superuser: whether another superuser can log in.
    """
    if superuser and (made_by_initdb or not other_superuser):
        return (
            "the role spotconn is the superuser that this server was made with, or its only one: do not demote it. "
            "The library acts as the role spotconn under any login, so that must be a plain role. CREATE ROLE "
            "my_admin SUPERUSER LOGIN PASSWORD '…'; as my_admin ALTER ROLE spotconn RENAME TO former_spotconn; "
            f"{APPLY_SCHEMA}; then let the service log in as another role, a member of the new role spotconn"
        )
    if superuser:
        return "as another superuser: ALTER ROLE spotconn NOSUPERUSER NOBYPASSRLS"
    if bypasses:
        return "with the login that gave it BYPASSRLS: ALTER ROLE spotconn NOBYPASSRLS"
    if owns:
        return (
            "the role spotconn owns public.spotify_connections or is a member of its owner, whom no policy binds: "
            "ALTER TABLE public.spotify_connections OWNER TO the role that applies the schema, and let the service log "
            "in as another role, a member of spotconn"
        )
    return f"drop the policies that are not the library's (any one is enough to let a row pass), and {APPLY_SCHEMA}"
