"""Alterations of keys, columns and what a restore leaves, for the doctor's comparison of the catalog."""

from spotconn._database.errors import APPLY_SCHEMA
from support.altered_rights import TABLE, Case

_KEY = "foreign key (user_id) references auth.users (id)"
_FOREIGN_KEY = f"constraint spotify_connections_user_id_fkey {_KEY}"
_STATE_KEY = f"constraint refresh_state_user_id_fkey {_KEY}"
_RETYPED = (
    "update pg_catalog.pg_attribute set atttypid = '{}'::regtype, atttypmod = {} "
    f"where attrelid = '{TABLE}'::regclass and attname = '{{}}'"
)

TABLES = {
    # Policies and row security of the library's own tables.
    "policy of started connects gone": Case(
        'drop policy "Own pending connects are used" on spotconn.pending_connect',
        "fail",
        'policy "Own pending connects are used" on spotconn.pending_connect is missing',
    ),
    "policy of started connects altered": Case(
        'alter policy "Own pending connects are seen" on spotconn.pending_connect using (true)',
        "fail",
        'policy "Own pending connects are seen" on spotconn.pending_connect was altered',
    ),
    "policy of states gone": Case(
        'drop policy "Own refresh state" on spotconn.refresh_state',
        "fail",
        'policy "Own refresh state" on spotconn.refresh_state is missing',
    ),
    "policy of states added": Case(
        "create policy more on spotconn.refresh_state to spotconn using (true)",
        "fail",
        "policy more on spotconn.refresh_state was added",
        "DROP POLICY more ON spotconn.refresh_state",
    ),
    "row security of connections": Case(
        f"alter table {TABLE} disable row level security", "fail", f"table {TABLE} was altered (row security: off)"
    ),
    "row security of states": Case(
        "alter table spotconn.refresh_state disable row level security",
        "fail",
        "table spotconn.refresh_state was altered (row security: off)",
    ),
    "row security of reminders": Case(
        "alter table spotconn.reminder disable row level security",
        "fail",
        "table spotconn.reminder was altered (row security: off)",
    ),
    # The schema and its functions.
    "usage of the library lost": Case(
        "revoke usage on schema spotconn from spotconn", "fail", "spotconn may not have USAGE on schema spotconn"
    ),
    "usage of the operator lost": Case(
        "revoke usage on schema spotconn from service_role",
        "fail",
        "service_role may not have USAGE on schema spotconn",
    ),
    "call of a function lost": Case(
        "revoke execute on function spotconn.get_connection(uuid) from spotconn",
        "fail",
        "spotconn may not EXECUTE spotconn.get_connection(uuid)",
    ),
    # Keys.
    "foreign key gone": Case(
        f"alter table {TABLE} drop constraint spotify_connections_user_id_fkey",
        "fail",
        f"constraint spotify_connections_user_id_fkey on {TABLE} is missing",
    ),
    "foreign key without cascade": Case(
        f"alter table {TABLE} drop constraint spotify_connections_user_id_fkey; alter table {TABLE} add {_FOREIGN_KEY}",
        "warn",
        f"constraint spotify_connections_user_id_fkey on {TABLE} was altered (form: FOREIGN KEY (user_id) "
        "REFERENCES auth.users(id))",
    ),
    "foreign key that is not validated": Case(
        f"alter table {TABLE} drop constraint spotify_connections_user_id_fkey; "
        f"alter table {TABLE} add {_FOREIGN_KEY} on delete cascade not valid",
        "warn",
        "ON DELETE CASCADE NOT VALID",
    ),
    "foreign key of states without cascade": Case(
        "alter table spotconn.refresh_state drop constraint refresh_state_user_id_fkey; "
        f"alter table spotconn.refresh_state add {_STATE_KEY}",
        "fail",
        "constraint refresh_state_user_id_fkey on spotconn.refresh_state was altered",
        "alter table spotconn.refresh_state drop constraint refresh_state_user_id_fkey; "
        f"alter table spotconn.refresh_state add {_STATE_KEY} on update cascade on delete cascade",
        by_hand=True,
    ),
    "unique key gone": Case(
        f"alter table {TABLE} drop constraint spotify_connections_user_id_key",
        "fail",
        f"constraint spotify_connections_user_id_key on {TABLE} is missing",
    ),
    "primary key of started connects gone": Case(
        "alter table spotconn.pending_connect drop constraint pending_connect_pkey",
        "fail",
        "constraint pending_connect_pkey on spotconn.pending_connect is missing",
        "alter table spotconn.pending_connect alter column state_hash set not null, "
        "add constraint pending_connect_pkey primary key (state_hash)",
        by_hand=True,
    ),
    "check of another": Case(
        f"alter table {TABLE} add constraint c check (length(access_token) < 200)",
        "warn",
        f"constraint c on {TABLE} was added",
        f"alter table {TABLE} drop constraint c",
        by_hand=True,
    ),
    "index that a build has left invalid": Case(
        "update pg_catalog.pg_index set indisvalid = false "
        "where indexrelid = 'public.spotify_connections_user_id_key'::regclass",
        "warn",
        f"index spotify_connections_user_id_key on {TABLE} was altered",
        "update pg_catalog.pg_index set indisvalid = true "
        "where indexrelid = 'public.spotify_connections_user_id_key'::regclass",
        by_hand=True,
    ),
    # Columns.
    "unknown column that each row must have": Case(
        f"alter table {TABLE} add column tenant uuid not null",
        "fail",
        f"column {TABLE}.tenant was added: uuid not null without a default",
        f"ALTER TABLE {TABLE} ALTER COLUMN tenant DROP NOT NULL",
    ),
    # In the catalog itself: while something depends on a column, its type cannot be altered.
    "short column": Case(
        _RETYPED.format("varchar", 259, "access_token"),
        "warn",
        f"column {TABLE}.access_token was altered (form: character varying(255) not null)",
    ),
    "times without a zone": Case(
        _RETYPED.format("timestamp", -1, "expires_at"),
        "warn",
        f"column {TABLE}.expires_at was altered (form: timestamp without time zone not null)",
        _RETYPED.format("timestamptz", -1, "expires_at"),
        by_hand=True,
    ),
    "optional column that each row must have": Case(
        f"alter table {TABLE} alter column email set not null",
        "warn",
        f"column {TABLE}.email was altered (form: text not null)",
        f"alter table {TABLE} alter column email drop not null",
        by_hand=True,
    ),
    "table that a crash empties": Case(
        "alter table spotconn.refresh_state set unlogged",
        "fail",
        "table spotconn.refresh_state was altered (form: unlogged table)",
        "ALTER TABLE spotconn.refresh_state SET LOGGED",
    ),
    # What sends rows elsewhere.
    "publication of all tables": Case(
        "create publication everything for all tables",
        "warn",
        f"the publication everything sends the rows of {TABLE}",
        None,
    ),
    "publication of a schema": Case(
        "create publication of_public for tables in schema public",
        "warn",
        f"the publication of_public sends the rows of {TABLE}",
        None,
    ),
    "publication of states": Case(
        "create publication p for table spotconn.refresh_state",
        "warn",
        "the publication p sends the rows of spotconn.refresh_state",
        "ALTER PUBLICATION p DROP TABLE spotconn.refresh_state",
    ),
    # After a restore on a stack whose default privileges grant everything.
    "all rights after a restore": Case(
        f"grant all on {TABLE} to anon, authenticated, service_role", "fail", f"anon may DELETE {TABLE}"
    ),
    "truncate after a restore": Case(
        f"grant truncate on {TABLE} to authenticated", "fail", f"authenticated may TRUNCATE {TABLE}"
    ),
    "references after a restore": Case(
        f"grant references on {TABLE} to authenticated", "fail", f"authenticated may REFERENCES {TABLE}"
    ),
    "trigger after a restore": Case(
        f"grant trigger on {TABLE} to authenticated", "fail", f"authenticated may TRIGGER {TABLE}"
    ),
    "started connects of all after a restore": Case(
        "grant all on spotconn.pending_connect to authenticated",
        "fail",
        "authenticated may DELETE spotconn.pending_connect",
    ),
    "default privileges": Case(
        "alter default privileges in schema spotconn grant select on tables to authenticated",
        "warn",
        "TABLES that postgres makes in schema spotconn grant SELECT to authenticated",
        "ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA spotconn REVOKE SELECT ON TABLES FROM authenticated",
    ),
    "default privileges of functions": Case(
        "alter default privileges in schema spotconn grant execute on functions to anon",
        "warn",
        "FUNCTIONS that postgres makes in schema spotconn grant EXECUTE to anon",
        "ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA spotconn REVOKE EXECUTE ON FUNCTIONS FROM anon",
    ),
    # Triggers.
    "triggers all disabled": Case(
        f"alter table {TABLE} disable trigger all",
        "fail",
        f"constraint spotify_connections_user_id_fkey on {TABLE} was altered (form: FOREIGN KEY (user_id) "
        "REFERENCES auth.users(id) ON DELETE CASCADE, whose triggers are disabled)",
        f"alter table {TABLE} enable trigger all; {APPLY_SCHEMA}",
        by_hand=True,
    ),
    "cascade from the users disabled": Case(
        "alter table auth.users disable trigger all",
        "fail",
        f"constraint spotify_connections_user_id_fkey on {TABLE} was altered",
        "alter table auth.users enable trigger all",
        by_hand=True,
    ),
    "bounds gone": Case(
        f"drop trigger spotconn_check_bounds on {TABLE}",
        "fail",
        f"trigger spotconn_check_bounds on {TABLE} is missing",
    ),
    "event trigger": Case(
        "create function public.undo() returns event_trigger language plpgsql as "
        f"$$ begin grant select on {TABLE} to anon; end $$; "
        "create event trigger undo on ddl_command_end when tag in ('COMMENT') execute function public.undo()",
        "warn",
        "the event trigger undo ON ddl_command_end runs public.undo()",
        "ALTER EVENT TRIGGER undo DISABLE",
    ),
    "no triggers in all sessions": Case(
        "alter role spotconn set session_replication_role = replica",
        "warn",
        "ROLE spotconn sets session_replication_role for its sessions",
        "ALTER ROLE spotconn RESET session_replication_role",
    ),
    # Owners.
    "a client owns the table": Case(
        f"alter table {TABLE} owner to authenticated",
        "fail",
        f"table {TABLE} belongs to authenticated",
        f"ALTER TABLE {TABLE} OWNER TO current_user; {APPLY_SCHEMA}",
        by_hand=True,
    ),
    "a client owns a function": Case(
        "alter function spotconn.act_as(uuid) owner to authenticated",
        "fail",
        "function spotconn.act_as(uuid) belongs to authenticated",
        f"ALTER FUNCTION spotconn.act_as(uuid) OWNER TO current_user; {APPLY_SCHEMA}",
        by_hand=True,
    ),
    # What a project may do as it likes.
    "own numbered column": Case(
        f"alter table {TABLE} add column n bigint generated always as identity", "ok", "as shipped", None
    ),
    "own default privileges": Case(
        "alter default privileges in schema public grant all on tables to anon; "
        "alter default privileges grant execute on functions to anon",
        "ok",
        "as shipped",
        None,
    ),
}
