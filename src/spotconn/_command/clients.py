"""The doctor's line on what a signed-in user may do with tokens: the level that was applied, and whether it holds."""

from collections.abc import Collection

from spotconn._command.comparison import of_other_version
from spotconn._command.differences import CLIENTS
from spotconn._command.facts import Fact, expected_facts, level_of, read_facts
from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._database.errors import APPLY_SCHEMA

SUBJECT = "clients"
# Logins that can act as a browser's role: PostgREST's, which is authenticator on Supabase. Superusers are none, and
# neither is who may only administer the role, as PostgreSQL 16 and later let its maker.
_LOGINS_OF_BROWSERS = """
with recursive acting (member) as (
    select member from pg_catalog.pg_auth_members as given
    join pg_catalog.pg_roles as role on role.oid = roleid
    where rolname in ('anon', 'authenticated')
        and not pg_catalog.to_jsonb(given) @> '{"inherit_option": false, "set_option": false}'
    union
    select given.member from pg_catalog.pg_auth_members as given
    join acting on given.roleid = acting.member
    where not pg_catalog.to_jsonb(given) @> '{"inherit_option": false, "set_option": false}'
)
select exists (
    select from pg_catalog.pg_roles
    where rolcanlogin and not rolsuper
        and (rolname in ('anon', 'authenticated') or oid in (select member from acting))
)
"""
_NO_API = Finding(
    state="ok",
    subject=SUBJECT,
    text="no login may become anon or authenticated, as that of an API for browsers (PostgREST) would: nobody comes "
    "to the table as a signed-in user. Before there is one: spotconn schema --apply --close-writes, or --lock-down",
)
_LEVELS = {
    "open": Finding(
        state="warn",
        subject=SUBJECT,
        text="a signed-in user reads and writes the tokens of the own row: one who has somebody's leaked refresh "
        "token can put it there, and read back what this service refreshed with its client secret, unless "
        "SPOTCONN_REQUIRE_ENCRYPTED refuses it",
        remedy="spotconn schema --apply --close-writes (clients still read the tokens of their own row), or "
        "spotconn schema --apply --lock-down (they do neither)",
    ),
    "closed": Finding(
        state="ok",
        subject=SUBJECT,
        text="by the level applied, a signed-in user reads the tokens of the own row and writes none; see catalog",
    ),
    "locked": Finding(
        state="ok",
        subject=SUBJECT,
        text="by the level applied, a signed-in user neither reads nor writes tokens; see catalog",
    ),
}


async def check_clients(probe: Probe) -> Finding:
    """Name what a signed-in user may do with the tokens of the own row, by the level that was applied if it holds."""
    found, expected = await read_facts(probe), expected_facts()
    if other := of_other_version(SUBJECT, found, expected):
        return other
    level = level_of(found, expected)
    if broken := _broken(found - expected[level]):
        return broken
    if level == "open" and not await probe.value(_LOGINS_OF_BROWSERS):
        return _NO_API
    return _LEVELS[level]


def _broken(added: Collection[Fact]) -> Finding | None:
    """Return the finding about a level that does not hold, from the facts that it does not have."""
    rights = [fact for fact in added if fact.property == "right" and fact.value.rpartition(" to ")[2] in CLIENTS]
    members = sorted(fact for fact in added if fact.property == "member" and fact.name in CLIENTS)
    if not (rights or members):
        return None
    texts = [f"{fact.name} is a member of {fact.value}, and may all that this role may" for fact in members]
    remedies = [f"REVOKE {fact.value} FROM {fact.name}, or from the role between the two" for fact in members]
    if rights:
        grantees = sorted({fact.value.rpartition(" to ")[2] for fact in rights})
        texts.append(f"{', '.join(grantees)} may more than that, as after a restore: {_tokens(rights)}see catalog")
        remedies.append(APPLY_SCHEMA)
    return Finding(
        state="fail",
        subject=SUBJECT,
        text=f"the level that was applied does not hold: {'; '.join(texts)}",
        remedy="; ".join(remedies),
    )


def _tokens(rights: Collection[Fact]) -> str:
    """Return whether rights reach the tokens, in words."""
    table = "public.spotify_connections"
    reached = {table, f"{table}.access_token", f"{table}.refresh_token"}
    may = {fact.value.partition(" to ")[0] for fact in rights if fact.name in reached}
    verbs = [
        verb for privilege, verb in (("SELECT", "read"), ("INSERT", "write"), ("UPDATE", "write")) if privilege in may
    ]
    return f"they {' and '.join(dict.fromkeys(verbs))} tokens where a policy lets them; " if verbs else ""
