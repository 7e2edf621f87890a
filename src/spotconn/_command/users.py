"""The doctor's check of the table of users that auth.users follows, if there is one."""

from spotconn._command.finding import Finding
from spotconn._command.probe import Probe

_TRIGGERS = 4

# The arguments of a trigger end with a NUL each; the first is the column.
_FOLLOWED = r"""
select format('%I.%I', schema.nspname, relname) as name,
    count(*) filter (where tgenabled in ('O', 'A') and tgname in (
        'spotconn_follow_insert', 'spotconn_follow_update', 'spotconn_follow_delete', 'spotconn_follow_truncate'
    )) as enabled,
    bool_and(exists (
        select from pg_catalog.pg_attribute
        where attrelid = relation.oid and attnum > 0 and not attisdropped and attname = convert_from(
            substring(tgargs from 1 for position('\x00'::bytea in tgargs) - 1), 'UTF8'
        )
    )) as has_column
from pg_catalog.pg_trigger
join pg_catalog.pg_proc as proc on proc.oid = tgfoid
join pg_catalog.pg_namespace as library on library.oid = pronamespace
join pg_catalog.pg_class as relation on relation.oid = tgrelid
join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
where (library.nspname, proname) = ('spotconn', 'follow_user') and tgparentid = 0
group by 1
order by 1
"""


async def check_users(probe: Probe) -> Finding:
    """Look whether the triggers that `spotconn schema --users` makes are there, enabled, and on one table."""
    followed = await probe.rows(_FOLLOWED)
    names = ", ".join(row["name"] for row in followed)
    if not followed:
        return Finding(state="ok", subject="users", text="auth.users follows no other table")
    if len(followed) > 1:
        text = f"auth.users follows {names}: the same id in two tables is one user"
        return Finding(
            state="fail", subject="users", text=text, remedy="DROP the spotconn_follow_ triggers of all but one"
        )
    if followed[0]["enabled"] != _TRIGGERS or not followed[0]["has_column"]:
        text = (
            f"triggers on {names} are missing, disabled or of a column that was renamed: connections of users who are "
        )
        text += "gone may stay, and new users cannot connect"
        return Finding(state="fail", subject="users", text=text, remedy="spotconn schema --apply --users")
    return Finding(state="ok", subject="users", text=f"auth.users follows {names}")
