"""The trigger, the worker and the webhook of the guide: one notice for each refused refresh token, without a token."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConnectionStore,
    ReauthorizationRequired,
    RefreshFailure,
    SpotifyAccounts,
    TokenManager,
)
from spotconn.models import fingerprint
from spotconn.testing import FakeSpotify, apply_schema
from support.connections import connect
from support.database import Database
from support.doc_blocks import blocks
from support.doctor import look
from support.guide import GUIDES, sql_blocks

DROP = """
drop trigger if exists note_refusal on spotconn.refresh_state;
drop table if exists public.spotify_notices;
drop schema if exists private, supabase_functions cascade
"""
# What Supabase's function makes of a row, by its documentation; it sends what is stored here.
HTTP_REQUEST = """
create schema supabase_functions;
create table supabase_functions.sent (url text, body jsonb);
create function supabase_functions.http_request() returns trigger language plpgsql security definer as $$
begin
    insert into supabase_functions.sent values (tg_argv[0], jsonb_build_object(
        'type', tg_op, 'schema', tg_table_schema, 'table', tg_table_name, 'record', new, 'old_record', old
    ));
    return new;
end
$$
"""
NOTICES = "select user_id, reason from public.spotify_notices order by id"
ANY = fingerprint("")
"""Of no stored token: who has it wants an ended one replaced."""
Worker = Callable[[asyncpg.Connection], Awaitable[bool]]


@pytest.fixture
async def noted(admin: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's session, in a database with the trigger of the guide and the webhook behind it."""
    trigger, webhook = sql_blocks("notices.md")
    await admin.execute(DROP)
    await admin.execute(HTTP_REQUEST)
    await admin.execute(trigger)
    await admin.execute(webhook)
    yield admin
    await admin.execute(DROP)


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    async with TokenManager(store, accounts) as opened:
        yield opened


async def refused(tokens: TokenManager, spotify: FakeSpotify, user: UUID) -> None:
    """Connect a user to an account whose access token has ended, and let Spotify refuse the refresh."""
    await connect(tokens.store, spotify, user, ttl=-60)
    spotify.revoke("alice")
    with pytest.raises(ReauthorizationRequired):
        await tokens.get_valid_token(user)


async def test_one_notice_for_each_refused_refresh_token(
    tokens: TokenManager, spotify: FakeSpotify, store: ConnectionStore, user: UUID, noted: asyncpg.Connection
) -> None:
    """None for trouble that passes, none for a second opinion, and one more once the user has connected again. The body
    that the webhook sends has four columns, and nothing of a token.
    """
    await connect(store, spotify, user, ttl=-60)
    turn = await store.begin_refresh(user, seen=ANY)
    assert await store.fail_refresh(turn, RefreshFailure(reason="unavailable"))
    assert await noted.fetch(NOTICES) == []
    await refused(tokens, spotify, user)
    assert [tuple(row) for row in await noted.fetch(NOTICES)] == [(user, "revoked")]
    await noted.execute("update spotconn.refresh_state set retry_at = now() - interval '1 second'")
    turn = await store.begin_refresh(user, seen=ANY)
    assert await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    assert len(await noted.fetch(NOTICES)) == 1
    await refused(tokens, spotify, user)
    assert len(await noted.fetch(NOTICES)) == 2
    sent = [json.loads(row["body"]) for row in await noted.fetch("select body from supabase_functions.sent")]
    assert [body["record"]["user_id"] for body in sent] == [str(user)] * 2
    assert {"type": "INSERT", "table": "spotify_notices", "old_record": None}.items() <= sent[0].items()
    assert sent[0]["record"].keys() == {"id", "user_id", "reason", "since"}
    stored = await store.get(user)
    for secret in (stored.access_token, stored.refresh_token, stored.fingerprint, fingerprint(stored.refresh_token)):
        assert secret not in str(sent)


async def test_no_client_reads_the_notices(noted: asyncpg.Connection, database: Database) -> None:
    """The doctor names the trigger as added and nothing as open; an application of the schema leaves it."""
    for role in ("anon", "authenticated", "spotconn"):
        assert not await noted.fetchval("select has_table_privilege($1, 'public.spotify_notices', 'select')", role)
    await apply_schema(database.admin_dsn, plain_postgres=False)
    catalog = (await look(database.admin_dsn))["catalog"]
    assert catalog.state == "warn"
    assert "trigger note_refusal on spotconn.refresh_state was added" in catalog.text


async def test_a_notice_that_cannot_be_written_costs_no_refusal(
    tokens: TokenManager, spotify: FakeSpotify, store: ConnectionStore, user: UUID, noted: asyncpg.Connection
) -> None:
    """The refusal is recorded all the same, so Spotify is not asked again."""
    await noted.execute("drop table public.spotify_notices")
    await refused(tokens, spotify, user)
    failure = (await store.get(user)).failure
    assert failure is not None
    assert failure.reason == "revoked"


async def test_the_worker_writes_to_those_who_still_have_to_connect(
    tokens: TokenManager,
    spotify: FakeSpotify,
    users: list[UUID],
    noted: asyncpg.Connection,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each row is taken once, and who has connected meanwhile is left alone. A user whose row no longer decrypts, which
    a browser may have written, does not hold up the others.
    """
    names: dict[str, Any] = {"tokens": tokens}
    [block] = [block for block in blocks(GUIDES / "notices.md") if "def next_notice" in block.code]
    await block.run(names)
    worker: Worker = names["next_notice"]
    for user in users:
        await refused(tokens, spotify, user)
    await connect(tokens.store, spotify, users[0])
    await noted.execute(
        "update public.spotify_connections set access_token = 'spotconn1.' where user_id = $1", users[1]
    )
    assert [await worker(noted) for _ in range(4)] == [True, True, True, False]
    assert capsys.readouterr().out == "".join(f"{user} has to connect again: revoked\n" for user in users[1:])


async def test_a_refusal_at_the_begin_of_a_run_is_not_missed(
    tokens: TokenManager, spotify: FakeSpotify, user: UUID, database: Database, noted: asyncpg.Connection
) -> None:
    """Recorded just before the run and visible just after, or by a clock that is behind, it is listed by the next one;
    by each run with the same moment.
    """
    names: dict[str, Any] = {}
    [block] = [block for block in blocks(GUIDES / "notices.md") if "def refused_since" in block.code]
    await block.run(names)
    await refused(tokens, spotify, user)
    since: datetime = await noted.fetchval("select failed_at from spotconn.refresh_state")
    for begin in (since + timedelta(seconds=30), since - timedelta(hours=1)):
        assert await names["refused_since"](database.admin_dsn, begin) == {str(user): since}
    assert await names["refused_since"](database.admin_dsn, since + timedelta(hours=1)) == {}
