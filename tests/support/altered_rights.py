"""Alterations of policies, rights and what the attack script alters, for the doctor's comparison of the catalog."""

from dataclasses import dataclass
from typing import Literal

from spotconn._database.errors import APPLY_SCHEMA

UID = "create or replace function auth.uid() returns uuid language sql stable as $$ select {} $$"
SUB = "nullif(coalesce(current_setting('request.jwt.claims', true)::json ->> 'sub', {}), '')::uuid"
TABLE = "public.spotify_connections"
COPY = (
    "create table public.loot (t text); create function public.copy() returns trigger language plpgsql as "
    "$$ begin insert into public.loot values (new.refresh_token); return new; end $$;"
)
OWN = "(select auth.uid()) = user_id"


@dataclass(frozen=True)
class Case:
    """An alteration as the superuser, the gravest state that it may get, what is said, and what mends it."""

    alteration: str
    state: Literal["ok", "warn", "fail"]
    text: str
    mend: str | None = APPLY_SCHEMA  # None: not at all, or by much more
    by_hand: bool = False  # the remedy says where to look, and the SQL is ours


RIGHTS = {
    # The lines of the attack script.
    "policy": Case(
        "create policy more on spotconn.pending_connect for select using (true)",
        "fail",
        "policy more on spotconn.pending_connect was added: permissive for select to PUBLIC using true",
        "DROP POLICY more ON spotconn.pending_connect",
    ),
    "truncate": Case(f"grant truncate on {TABLE} to anon", "fail", f"anon may TRUNCATE {TABLE}"),
    "references": Case(f"grant references, trigger on {TABLE} to public", "fail", f"PUBLIC may REFERENCES {TABLE}"),
    "uid of a header": Case(
        UID.format(SUB.format("current_setting('request.headers', true)::json ->> 'x-user'")),
        "fail",
        "function auth.uid() was altered: the policies ask it who a user is, and it reads more than the claims",
        UID.format(
            "coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''), "
            "(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'))::uuid"
        ),
        by_hand=True,
    ),
    "trigger": Case(
        f"{COPY} create trigger t before insert on {TABLE} for each row execute function public.copy()",
        "warn",
        f"trigger t on {TABLE} was added: enabled: CREATE TRIGGER t BEFORE INSERT",
        f"DROP TRIGGER t ON {TABLE}",
    ),
    "usage": Case(
        "grant usage on schema spotconn to authenticated",
        "fail",
        "authenticated may have USAGE on schema spotconn",
        "REVOKE USAGE ON SCHEMA spotconn FROM authenticated",
    ),
    "execute": Case(
        "grant execute on all functions in schema spotconn to authenticated",
        "fail",
        "authenticated may EXECUTE spotconn.act_as(uuid)",
    ),
    "member": Case(
        "grant spotconn to authenticated",
        "fail",
        "authenticated is a member of spotconn",
        "REVOKE spotconn FROM authenticated",
    ),
    "publication": Case(
        f"create publication supabase_realtime for table {TABLE}",
        "warn",
        f"the publication supabase_realtime sends the rows of {TABLE}",
        f"ALTER PUBLICATION supabase_realtime DROP TABLE {TABLE}",
    ),
    # Each other kind of fact.
    "policy like ours": Case(
        f"create policy again on {TABLE} for select using ({OWN})",
        "warn",
        f"policy again on {TABLE} was added",
        f"DROP POLICY again ON {TABLE}",
    ),
    "policy of another role": Case(
        f"create role reporting; create policy r on {TABLE} for select to reporting using (true)",
        "warn",
        "permissive for select to reporting using true",
        f"DROP POLICY r ON {TABLE}",
    ),
    "restrictive policy": Case(
        f"create policy r on {TABLE} as restrictive using (email is null)",
        "fail",
        f"policy r on {TABLE} was added, and keeps rows from the library: restrictive for all to PUBLIC",
        f"DROP POLICY r ON {TABLE}",
    ),
    "restrictive policy of a role that the library's is a member of": Case(
        f"create role team; grant team to spotconn; create policy r on {TABLE} as restrictive for update to team "
        "using (true)",
        "fail",
        f"policy r on {TABLE} was added, and keeps rows from the library: restrictive for update to team",
        f"DROP POLICY r ON {TABLE}; REVOKE team FROM spotconn",
    ),
    "restrictive policy of the browsers": Case(
        f"create policy r on {TABLE} as restrictive to authenticated using (email is null)",
        "warn",
        f"policy r on {TABLE} was added: restrictive for all to authenticated",
        f"DROP POLICY r ON {TABLE}",
    ),
    "policy of a role that a client is a member of": Case(
        f"create role staff; grant staff to authenticated; create policy r on {TABLE} to staff using (true)",
        "fail",
        "authenticated is a member of staff",
        f"REVOKE staff FROM authenticated; DROP POLICY r ON {TABLE}",
    ),
    "policy altered": Case(
        f'alter policy "Users can view own connections" on {TABLE} using ({OWN} or true)',
        "fail",
        f'policy "Users can view own connections" on {TABLE} was altered (form: permissive for select to PUBLIC using ',
    ),
    "policy of other roles": Case(
        'alter policy "Own refresh state" on spotconn.refresh_state to public',
        "fail",
        'policy "Own refresh state" on spotconn.refresh_state was altered (form: permissive for all to PUBLIC',
    ),
    "policy gone": Case(
        f'drop policy "Users can view own connections" on {TABLE}',
        "fail",
        f'policy "Users can view own connections" on {TABLE} is missing',
    ),
    "row security": Case(
        "alter table spotconn.pending_connect disable row level security",
        "fail",
        "table spotconn.pending_connect was altered (row security: off)",
    ),
    "row security forced": Case(
        f"alter table {TABLE} force row level security",
        "warn",
        "(row security: on, forced)",
        f"ALTER TABLE {TABLE} NO FORCE ROW LEVEL SECURITY",
    ),
    "tokens of anon": Case(f"grant select on {TABLE} to anon", "fail", f"anon may SELECT {TABLE}"),
    "one column": Case(
        f"grant select (refresh_token) on {TABLE} to anon", "fail", f"anon may SELECT {TABLE}.refresh_token"
    ),
    "column of another role": Case(
        f"create role reporting; grant select (email) on {TABLE} to reporting",
        "warn",
        f"reporting may SELECT {TABLE}.email",
        f"REVOKE SELECT (email) ON TABLE {TABLE} FROM reporting",
    ),
    "grant option": Case(
        f"grant select on {TABLE} to service_role with grant option",
        "warn",
        f"service_role may GRANT OPTION FOR SELECT {TABLE}",
        f"REVOKE GRANT OPTION FOR SELECT ON TABLE {TABLE} FROM service_role",
    ),
    "states of anon": Case(
        "grant select on spotconn.refresh_state to anon", "fail", "anon may SELECT spotconn.refresh_state"
    ),
    "reminders by the library": Case(
        "grant select on spotconn.reminder to spotconn", "fail", "spotconn may SELECT spotconn.reminder"
    ),
    "truncate by the library": Case(
        f"grant truncate on {TABLE} to spotconn",
        "fail",
        f"spotconn may TRUNCATE {TABLE}",
        f"REVOKE TRUNCATE ON TABLE {TABLE} FROM spotconn",
    ),
    "right gone": Case(f"revoke insert on {TABLE} from spotconn", "fail", f"spotconn may not INSERT {TABLE}"),
    "create in the schema": Case(
        "grant create on schema spotconn to public",
        "fail",
        "PUBLIC may have CREATE on schema spotconn",
        "REVOKE CREATE ON SCHEMA spotconn FROM PUBLIC",
    ),
}
