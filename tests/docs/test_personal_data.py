"""The page "What personal data is stored, and how it goes": what it states is so, where that can be looked at."""

import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import get_args
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectFailed,
    ConnectFlow,
    ConnectionAdmin,
    ConnectionStore,
    NotConnected,
    ReauthorizationRequired,
    SpotconnError,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
    events,
)
from spotconn.testing import Answer, FakeSpotify
from support.consent import REDIRECT_URI, SCOPES, agree
from support.database import Database
from support.database_clock import database_clock
from support.exported import Exported
from support.memory import is_reached

PAGE = (Path(__file__).parents[2] / "docs" / "personal-data.md").read_text(encoding="utf-8")
ACCOUNT, LASTING, NAME, MAIL, DATA = (
    "marked-account",
    "marked-lasting",
    "Marked Name",
    "marked@example.org",
    "marked data",
)
TABLES = ("spotify_connections", "refresh_state", "reminder", "pending_connect")
COLUMNS = """
select table_name, array_agg(column_name::text) as columns from information_schema.columns
join information_schema.tables using (table_schema, table_name)
where table_type = 'BASE TABLE' and (table_schema = 'spotconn' or table_name = 'spotify_connections') group by 1
"""


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the tables of a section, without their heads."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section if line.startswith("|")]
    heads = {place - 1 for place, row in enumerate(cells) if set("".join(row)) == {"-"}}
    return [row for place, row in enumerate(cells) if place not in heads and place - 1 not in heads]


def words_of(cell: str) -> list[str]:
    return [word.strip("`") for word in cell.split(", ")]


@pytest.fixture
def told() -> list[events.Event]:
    return []


@pytest.fixture
async def keyed(database: Database) -> AsyncIterator[ConnectionStore]:
    """A store that encrypts."""
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
    async with ConnectionStore.open(database.dsn, cipher=cipher, statement_cache_size=100) as opened:
        yield opened


@pytest.fixture
async def house(operator: str) -> AsyncIterator[ConnectionAdmin]:
    async with ConnectionAdmin.open(operator) as opened:
        yield opened


@pytest.fixture
def flow(
    keyed: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, told: list[events.Event]
) -> ConnectFlow:
    """A flow over the store that encrypts; the account has a marked name, address and ids."""
    spotify.add_account(ACCOUNT, display_name=NAME, email=MAIL, account_id=LASTING, country="marked-land")
    return ConnectFlow(keyed, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES, on_event=told.append)


@pytest.fixture
def exported() -> Iterator[Exported]:
    caught = Exported()
    yield caught
    caught.close()


@pytest.fixture
async def tokens(
    keyed: ConnectionStore, accounts: SpotifyAccounts, told: list[events.Event], exported: Exported
) -> AsyncIterator[TokenManager]:
    async with TokenManager(keyed, accounts, on_event=told.append, refresh_timeout=2, lease=3) as manager:
        yield exported.instrument(manager)


async def stored(admin: asyncpg.Connection, *texts: str) -> dict[str, list[str]]:
    """By table: the rows, as text, that hold one of these."""
    tables = await admin.fetch(
        "select oid::regclass::text as name, relname from pg_class where relkind in ('r', 'm') "
        "and relnamespace::regnamespace::text not in ('pg_catalog', 'information_schema', 'pg_toast')"
    )
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, relname in tables:
        rows = await admin.fetch(f"select one::text as row from {name} as one")
        found[relname] += [row["row"] for row in rows if any(text in row["row"] for text in texts)]
    return {name: rows for name, rows in found.items() if rows}


async def everything(flow: ConnectFlow, house: ConnectionAdmin, admin: asyncpg.Connection, user: UUID) -> None:
    """Let a user connect, be refused and be asked, and begin to connect once more."""
    await flow.finish(user, await agree(await flow.start(user), ACCOUNT))
    long_ago = "now() - interval '300 days'"
    await admin.execute(f"update public.spotify_connections set connected_at = {long_ago}, expires_at = {long_ago}")
    await admin.execute(
        f"update spotconn.refresh_state set failure = 'expired', failed_at = {long_ago}, saved_at = null"
    )
    await admin.execute("delete from spotconn.pending_connect")
    assert await house.mark_asked([user]) == 1
    await flow.begin(user, data={"a": DATA})


async def test_each_column_stands_on_the_page(admin: asyncpg.Connection) -> None:
    """No column of a table of the library is left out, and none is there that the page does not have."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    table = "spotify_connections"
    for first, second, *_ in rows_of("What is stored"):
        if first.strip("`") in TABLES or not first:
            table = first.strip("`") or table
            found[table] += words_of(second)
        else:
            found[table] += words_of(first)
    there = {row["table_name"]: sorted(row["columns"]) for row in await admin.fetch(COLUMNS)}
    assert {table: sorted(columns) for table, columns in found.items()} == there


async def test_only_tokens_and_verifiers_are_encrypted(
    flow: ConnectFlow, house: ConnectionAdmin, admin: asyncpg.Connection, user: UUID
) -> None:
    """Name, address and ids stand as they are, once each; what else Spotify says of the account, and the data of an
    attempt, are nowhere.
    """
    await everything(flow, house, admin, user)
    (row,) = (await stored(admin, NAME))["spotify_connections"]
    assert all(text in row for text in (NAME, MAIL, ACCOUNT))
    assert (await stored(admin, LASTING)).keys() == {"refresh_state"}
    assert await stored(admin, "marked-land", DATA) == {}
    cells = {column: row[2] for row in rows_of("What is stored")[:8] for column in words_of(row[0])}
    assert cells == {column: "yes" if column.endswith("_token") else "no" for column in cells}


WAYS = ["deleted", "disconnected", "pruned", "by SQL", "connects again"]


@pytest.mark.parametrize(("way", "row"), [*zip(WAYS, rows_of("When it goes"), strict=False)], ids=WAYS)
async def test_when_it_goes(
    flow: ConnectFlow,
    tokens: TokenManager,
    house: ConnectionAdmin,
    admin: asyncpg.Connection,
    users: list[UUID],
    way: str,
    row: list[str],
) -> None:
    """Each table has what the page says; when the next user begins to connect after ten minutes, also the row of the
    attempt is gone.
    """
    user = users[0]
    await everything(flow, house, admin, user)
    before = await stored(admin, str(user))
    assert before.keys() - {"users"} == set(TABLES)
    match way:
        case "deleted":
            await admin.execute("delete from auth.users where id = $1", user)
        case "disconnected":
            assert await tokens.disconnect(user)
        case "pruned":
            assert (await house.prune(dead_for=timedelta(days=90), write=True)).expired == 1
        case "by SQL":
            await admin.execute("delete from public.spotify_connections where user_id = $1", user)
        case _:
            await flow.finish(user, await agree(await flow.start(user), ACCOUNT))
    after = await stored(admin, str(user))
    verifiers = await admin.fetch("select code_verifier from spotconn.pending_connect order by used_at")
    for table, cell in zip(TABLES, row[1:], strict=True):
        if cell == "goes":
            assert table not in after
        elif cell.startswith("stays"):
            assert after[table] == before[table]
        elif table == "pending_connect":
            assert "its secret goes at once and the row later" in cell
            assert verifiers[0]["code_verifier"] == ""
        else:
            assert cell in {"has the new tokens, name and address", "speaks of the new tokens", "counts no more"}
            assert [one.asked_at async for one in house.expiring(within=timedelta(days=300))] == [None]
    assert ("users" in after) is (way != "deleted")
    async with database_clock(admin) as clock:
        await clock.set_offset(601)
        await flow.start(users[1])
        assert "pending_connect" not in await stored(admin, str(user))


async def test_disconnect_also_takes_what_a_deleted_row_has_left(
    flow: ConnectFlow, tokens: TokenManager, house: ConnectionAdmin, admin: asyncpg.Connection, user: UUID
) -> None:
    """It returns False, and nothing is known of the connection any more."""
    await everything(flow, house, admin, user)
    await admin.execute("delete from public.spotify_connections")
    assert (await stored(admin, LASTING)).keys() == {"refresh_state"}
    assert await tokens.disconnect(user) is False
    assert (await stored(admin, str(user), LASTING)).keys() == {"users", "pending_connect"}


async def test_no_name_is_logged_told_or_exported(
    flow: ConnectFlow,
    tokens: TokenManager,
    spotify: FakeSpotify,
    admin: asyncpg.Connection,
    user: UUID,
    told: list[events.Event],
    exported: Exported,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Through a life with another account, a refusal, an outage and a disconnect: logs and errors have at most the
    user's id, telemetry not even that, and events what the page lists for them.
    """
    caplog.set_level(logging.DEBUG, "spotconn")
    errors: list[SpotconnError] = []
    spotify.add_account("marked-other", display_name=NAME)
    await flow.finish(user, await agree(await flow.start(user), ACCOUNT))
    token = await tokens.get_valid_token(user)
    for fault in ("another account", "refusal", "outage", "gone"):
        try:
            match fault:
                case "another account":
                    callback = await agree(await flow.start(user), "marked-other")
                    await flow.finish(user, callback, same_account=True)
                case "refusal":
                    spotify.revoke(ACCOUNT)
                case "outage":
                    await flow.finish(user, await agree(await flow.start(user), ACCOUNT))
                    token = await tokens.get_valid_token(user)
                    spotify.script(Answer(status=503, headers={"Retry-After": "60"}))
                case _:
                    await tokens.disconnect(user)
            await admin.execute("update spotconn.refresh_state set granted_at = null")  # a minute has passed
            await tokens.replace_rejected(user, token)
        except SpotconnError as error:
            errors.append(error)
    assert [type(error) for error in errors] == [
        ConnectFailed, ReauthorizationRequired, SpotifyUnavailable, NotConnected,
    ]  # fmt: skip
    texts = "\n".join([*map(str, errors), *(record.getMessage() for record in caplog.records), exported.text()])
    assert all(text not in texts for text in (NAME, MAIL, ACCOUNT, LASTING, "marked-other"))
    assert "spotconn.token.requests" in exported.text()
    assert str(user) not in exported.text()
    assert {type(event) for event in told} == {
        events.Connected, events.RefreshFailed, events.ReauthorizationRequired, events.Disconnected,
    }  # fmt: skip
    assert all(text not in repr(told) + str(told) for text in (NAME, MAIL, LASTING))


def test_each_event_stands_on_the_page() -> None:
    """With the fields that name a user; no other field does."""
    impersonal = {"client_id", "expires_at", "duration", "error", "message", "retry_after", "reason", "failure"}
    listed = {name: words_of(fields) for names, fields in rows_of("Events") for name in words_of(names)}
    there = {event.__name__: list(event.model_fields) for event in get_args(events.Event)}
    personal = {name: sorted(set(fields) - impersonal) for name, fields in there.items()}
    assert {name: sorted(fields) for name, fields in listed.items()} == {
        name: fields for name, fields in personal.items() if fields
    }


async def test_a_manager_remembers_no_name(
    flow: ConnectFlow, tokens: TokenManager, admin: asyncpg.Connection, user: UUID
) -> None:
    """In its memory is the token of a connected user, no name and no address, and after a disconnect no token."""
    await flow.finish(user, await agree(await flow.start(user), ACCOUNT))
    token = await tokens.get_valid_token(user)
    assert (await tokens.status(user)).display_name == NAME
    assert is_reached(tokens, token)
    assert not is_reached(tokens, NAME)
    assert not is_reached(tokens, MAIL)
    await tokens.disconnect(user)
    assert not is_reached(tokens, token)
