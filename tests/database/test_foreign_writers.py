"""Writers that know nothing of the library: their tokens are not overwritten, and what they leave alone counts on."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionAdmin, ConnectionStore, Outcome, Profile, RefreshFailure, RefreshTurn, TokenGrant
from spotconn._database.schema import read_sql
from spotconn.models import fingerprint, is_token
from spotconn.testing import apply_schema
from support.connections import grant, rows, stored_state
from support.database import Dsn
from support.documented_table import DOCUMENTED

ALICE = Profile(spotify_user_id="alice")
OLD = grant("old", minutes=-1)
SEEN = fingerprint(OLD.access_token)
NEW = TokenGrant(
    access_token="access-new", refresh_token="refresh-new", expires_at=datetime.now(UTC), expires_in=3600.0
)


async def begun(store: ConnectionStore, user: UUID) -> RefreshTurn:
    """Connect the user with an ended token and begin its refresh."""
    stored = await store.save(user, OLD, ALICE)
    turn = await store.begin_refresh(user, seen=stored.fingerprint)
    assert turn.outcome is Outcome.GRANTED
    return turn


@pytest.mark.parametrize("account", ["alice", "bob"])
async def test_other_tokens_under_the_same_end_are_not_overwritten(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, account: str
) -> None:
    """A writer that leaves `expires_at` as it was has stored other tokens all the same, be it of another account."""
    turn = await begun(store, user)
    await admin.execute(
        "update public.spotify_connections set access_token = 'a', refresh_token = 'r', spotify_user_id = $1", account
    )
    before = await rows(admin)
    assert before[0]["expires_at"] == OLD.expires_at
    assert await store.finish_refresh(turn, NEW) is None
    assert await store.fail_refresh(turn, RefreshFailure(reason="refused")) is None
    assert await rows(admin) == before
    assert (await store.get(user)).failure is None


ENDS = ["0001-01-01 00:00+00", "9999-12-31 23:59:59.999999+00", "infinity", "-infinity", "1999-12-31 23:59+00"]


@pytest.mark.parametrize("end", ENDS)
async def test_a_grant_is_saved_over_every_end(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, end: str
) -> None:
    """An end that no token of Spotify has counts as past, and does not keep a refresh from being saved."""
    await admin.execute(
        "insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
        f"values ($1, 'alice', 'access-old', 'refresh-old', '{end}')",
        user,
    )
    assert (await store.get(user)).remaining == 0
    assert (await store.get_many([user])).keys() == {user}
    turn = await store.begin_refresh(user, seen=fingerprint("another"))
    assert turn.outcome is Outcome.GRANTED
    done = await store.finish_refresh(turn, NEW)
    assert done is not None
    assert (done.access_token, done.refresh_token) == ("access-new", "refresh-new")
    assert 3590 < done.remaining <= 3600
    assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.SUPERSEDED


@pytest.mark.parametrize("moment", [*ENDS[:4], "2024-02-29 12:00+00"])
async def test_any_moment_of_the_authorization_can_be_read(
    store: ConnectionStore, operator: str, user: UUID, admin: asyncpg.Connection, moment: str
) -> None:
    """One that is infinite, before 2000 or at the end of time is no date, for a user's process and for an operator."""
    await store.save(user, OLD, ALICE)
    await admin.execute(f"update public.spotify_connections set connected_at = '{moment}', expires_at = '{moment}'")
    stored = await store.get(user)
    is_date = moment.startswith("2024")
    assert (stored.connected_at is not None) is (stored.reauthorize_by is not None) is is_date
    async with ConnectionAdmin.open(operator) as house:
        listed = [one async for one in house.expiring(within=timedelta(days=1))]
    assert [one.reauthorize_by for one in listed] == [stored.reauthorize_by] * is_date


FORMS = ["user-read-email,user-top-read", '["user-read-email","user-top-read"]', "{user-read-email,user-top-read}"]


@pytest.mark.parametrize("form", FORMS)
async def test_scopes_are_read_in_the_form_of_the_writer(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, form: str
) -> None:
    """Every read tells the same scopes, and leaves the text as it is."""
    await store.save(user, OLD, ALICE)
    await admin.execute("update public.spotify_connections set scope = $1", form)
    whole, lean = await store.get(user), await store.tokens.get(user)
    assert whole.scope == lean.scope == frozenset({"user-read-email", "user-top-read"})
    assert (await rows(admin))[0]["scope"] == form


async def test_the_database_tells_tokens_as_the_library_does(admin: asyncpg.Connection) -> None:
    """A text that one takes for a token is one to the other, letter by letter and as a whole."""
    letters = [chr(number) for number in range(1, 0x3000)]
    texts = [*letters, *(f"a{letter}" for letter in letters), "", "null", "NULL", "None", "undefined", "nullify", "a\n"]
    found = await admin.fetch("select text, spotconn.is_token(text) as token from unnest($1::text[]) as text", texts)
    assert [(row["text"], row["token"]) for row in found] == [(text, is_token(text)) for text in texts]


@pytest.mark.parametrize("failures", [-(2**31), 2**31 - 1])
@pytest.mark.parametrize("reason", ["refused", "unavailable"])
async def test_a_failure_is_recorded_beside_any_number(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, failures: int, reason: str
) -> None:
    """The counts that stand are taken for the nearest ones that can be."""
    turn = await begun(store, user)
    await admin.execute(
        "update spotconn.refresh_state set failures = $1, refusals = $1, refused_by = '{{a, b}, {c, null}}'", failures
    )
    recorded = await store.fail_refresh(turn, RefreshFailure.model_validate({"reason": reason, "refused_by": ["d"]}))
    assert recorded is not None
    assert (await store.get(user)).failure == recorded
    assert (await store.get(user)).refused_by == frozenset("abcd")


async def test_an_app_is_not_left_out_for_a_null_among_those_that_were_refused(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """It says nothing of any app."""
    stored = await store.save(user, OLD, ALICE)
    await admin.execute("update spotconn.refresh_state set refused_by = '{null, other}'")
    turn = await store.begin_refresh(user, seen=stored.fingerprint, client_ids=["other", "own"])
    assert (turn.outcome, turn.client_ids) == (Outcome.GRANTED, ("own",))


@pytest.mark.parametrize("end", ["'infinity'", "now() + interval '2 years'"])
async def test_a_lease_or_a_backoff_without_an_end_is_void(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, end: str
) -> None:
    """No process waits for it, nor says how long."""
    turn = await begun(store, user)
    await admin.execute(f"update spotconn.refresh_state set lease_until = {end}")
    turn = await store.begin_refresh(user, seen=SEEN)
    assert turn.outcome is Outcome.GRANTED
    await store.fail_refresh(turn, RefreshFailure(reason="unavailable"))
    await admin.execute(f"update spotconn.refresh_state set retry_at = {end}, failed_at = {end}")
    turn = await store.begin_refresh(user, seen=SEEN)
    assert (turn.outcome, turn.retry_after) == (Outcome.GRANTED, None)
    assert await store.finish_refresh(turn, NEW) is not None


@pytest.mark.parametrize("since", ["'-infinity'", "'4714-11-24 BC'"])
async def test_a_lease_may_have_begun_at_any_time(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, since: str
) -> None:
    """It holds until its end."""
    await begun(store, user)
    await admin.execute(f"update spotconn.refresh_state set leased_at = {since}, granted_at = {since}")
    assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.BUSY


UTC_HERE = "do $$ begin execute format('alter database %I set timezone to utc', current_database()); end $$"


async def test_times_in_columns_without_a_time_zone_are_utc(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """A table of a tutorial, with `timestamp` for `timestamptz`, has the date of the authorization and the end."""
    await scratch.execute(UTC_HERE)
    await scratch.execute(read_sql("plain_postgres.sql") + DOCUMENTED.replace("TIMESTAMPTZ", "TIMESTAMP"))
    await apply_schema(dsn())
    user = await scratch.fetchval("insert into auth.users (email) values ('a') returning id")
    async with ConnectionStore.open(dsn()) as store:
        await store.save(user, OLD, ALICE)
        stored = await store.get(user)
    assert stored.expires_at == OLD.expires_at
    assert stored.connected_at is not None
    assert abs(stored.connected_at - datetime.now(UTC)) < timedelta(minutes=2)


UPSERT = """
insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at)
select user_id, spotify_user_id, access_token, refresh_token, expires_at from public.spotify_connections
on conflict (user_id) do update set
    access_token = excluded.access_token, refresh_token = excluded.refresh_token, expires_at = excluded.expires_at
"""
HARMLESS = {
    "a name": "update public.spotify_connections set display_name = 'other', email = null, scope = 'user-read-email'",
    "an upsert of the same row": UPSERT,
    "its end": "update public.spotify_connections set expires_at = now() - interval '1 day'",
    "the moment of the authorization": "update public.spotify_connections set connected_at = null",
    "its id": "update public.spotify_connections set id = gen_random_uuid()",
}


@pytest.mark.parametrize("name", HARMLESS)
async def test_a_write_that_keeps_the_refresh_token_keeps_lease_and_state(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, name: str
) -> None:
    """The lease still holds others up, a failure still stands, and the refresh under way is saved."""
    turn = await begun(store, user)
    before = await stored_state(admin, user)
    await admin.execute(HARMLESS[name])
    assert await stored_state(admin, user) == before
    assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.BUSY
    assert await store.finish_refresh(turn, NEW) is not None
    await store.fail_refresh(await begun(store, user), RefreshFailure(reason="refused"))
    recorded = (await store.get(user)).failure
    assert recorded is not None
    await admin.execute(HARMLESS[name])
    assert (await store.get(user)).failure == recorded
    assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.REFUSED


async def test_a_row_deleted_and_inserted_again_keeps_lease_and_state(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """State hangs on the user: what a writer deletes and stores again still has its lease, and its failure."""
    turn = await begun(store, user)
    before = await stored_state(admin, user)
    (row,) = await rows(admin)
    async with admin.transaction():
        await admin.execute("delete from public.spotify_connections")
        places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        await admin.execute(
            f"insert into public.spotify_connections ({', '.join(row.keys())}) values ({places})", *row.values()
        )
    assert await stored_state(admin, user) == before
    assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.BUSY
    assert await store.finish_refresh(turn, NEW) is not None


@pytest.mark.parametrize("reason", ["refused", "unavailable"])
async def test_another_refresh_token_voids_all_but_the_count(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, reason: str
) -> None:
    """Neither lease nor failure counts, a refresh may begin at once, and the count of saves goes on."""
    turn = await begun(store, user)
    await store.fail_refresh(turn, RefreshFailure.model_validate({"reason": reason, "retry_after": 60}))
    await admin.execute("update spotconn.refresh_state set lapsed = true, granted_at = now(), saves = 7")
    family = (await stored_state(admin, user))["family"]
    await admin.execute("update public.spotify_connections set refresh_token = 'foreign'")
    stored = await store.get(user)
    assert (stored.failure, stored.saves) == (None, None)
    turn = await store.begin_refresh(user, seen=SEEN)
    assert turn.outcome is Outcome.GRANTED
    state = await stored_state(admin, user)
    assert state["fingerprint"] == bytes.fromhex(fingerprint("foreign"))
    known = ("failure", "failed_at", "paused_at", "retry_at", "failures", "refusals", "saved_at", "granted_at")
    assert [state[column] for column in known] == [None, None, None, None, 0, 0, None, None]
    assert (state["lapsed"], state["saves"], state["family"] != family) == (False, 7, True)
    done = await store.finish_refresh(turn, NEW)
    assert done is not None
    assert (done.saves, done.recovered) == (8, None)


async def test_a_disconnect_by_the_library_takes_the_count_along(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """What is known of the refresh token of a user who has disconnected is gone; a connect counts from one."""
    await begun(store, user)
    assert await store.delete(user)
    assert await admin.fetchval("select count(*) from spotconn.refresh_state") == 0
    assert (await store.save(user, OLD, ALICE)).saves == 1


async def test_a_token_found_wanting_before_its_end_is_refreshed(store: ConnectionStore, user: UUID) -> None:
    """`expires_at` says when a token ends and no more: one that was rejected, or is about to end, may be replaced."""
    stored = await store.save(user, grant("valid"), ALICE)
    turn = await store.begin_refresh(user, seen=stored.fingerprint)
    assert turn.outcome is Outcome.GRANTED
    ends = stored.expires_at - timedelta(minutes=30)
    done = await store.finish_refresh(turn, grant("new").model_copy(update={"expires_at": ends}))
    assert done is not None
    assert (done.access_token, done.expires_at) == ("access-new", ends)
