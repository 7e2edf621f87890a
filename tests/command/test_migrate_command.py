"""`spotconn migrate`: what it prints, and the verification of each row by one refresh."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from spotconn import (
    AesGcmSivCipher,
    ConnectionAdmin,
    ConnectionStore,
    MigratedRow,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
)
from spotconn._command import migrate
from spotconn._command.migrate import report_rows
from spotconn.cli import app
from spotconn.testing import Answer, FakeSpotify
from support.connections import rows
from support.database import Database

Command = Callable[..., Awaitable[Result]]
MAP = ("--from", "old.tokens", "--map", "user_id=owner", "--map", "refresh_token=refresh")
COLUMNS = {"user_id": "owner", "refresh_token": "refresh"}


@pytest.fixture
async def old(admin: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A session that may fill the other table."""
    await admin.execute("create schema old; create table old.tokens (owner uuid, refresh text, spotify_user_id text)")
    yield admin
    await admin.execute("drop schema old cascade")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, database: Database) -> Command:
    """Runs the command in this process."""
    for name in [name for name in os.environ if name.startswith(("SPOT", "DATABASE", "PG"))]:
        monkeypatch.delenv(name)

    async def run(*arguments: str) -> Result:
        env = {"DATABASE_URL": database.admin_dsn}
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, ["migrate", *arguments], env=env))

    return run


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    async with TokenManager(store, accounts) as manager:
        yield manager


@pytest.fixture
async def work(database: Database) -> AsyncIterator[ConnectionAdmin]:
    async with ConnectionAdmin.open(database.admin_dsn) as opened:
        yield opened


async def granted(old: asyncpg.Connection, spotify: FakeSpotify, users: list[UUID]) -> list[str]:
    """Give each user a row with a refresh token of Spotify and without an account."""
    refresh_tokens = list[str]()
    for number, user in enumerate(sorted(users)):
        spotify.add_account(f"account{number}", display_name=f"Name {number}")
        refresh_tokens.append(spotify.authorize(f"account{number}").refresh_token or "")
        await old.execute("insert into old.tokens values ($1, $2)", user, refresh_tokens[-1])
    return refresh_tokens


async def test_it_looks_before_it_writes(command: Command, old: asyncpg.Connection, users: list[UUID]) -> None:
    """Without --apply it counts and names what is unusable; with it the rest is written; no token is shown."""
    await old.execute("insert into old.tokens values ($1, 'AQ-marked', 'alice'), ($2, '', 'bob')", *users[:2])
    looked = await command(*MAP)
    assert looked.exit_code == 0
    assert looked.stdout == (
        f"{users[1]} is unusable: refresh_token\nwould be written: 1\nunusable: 1\n"
        "of these, access_token is not known: 1\nof these, expires_at is not known: 1\n"
        "of these, scope is not known: 1\nof these, connected_at is not known: 1\n"
    )
    assert not await rows(old)
    written = await command(*MAP, "--apply", "--json")
    assert written.exit_code == 7
    lines = {line["user_id"]: line["state"] for line in map(json.loads, written.stdout.splitlines())}
    assert lines == {str(users[0]): "written", str(users[1]): "unusable"}
    assert "marked" not in looked.output + written.output
    assert len(await rows(old)) == 1


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--from", "old.tokens", "--map", "refresh"), 2, "--map: expected OURS=ITS"),
        (("--from", "old.gone"), 2, "from: expected the name of another table"),
        ((*MAP, "--fernet-key-env", "OLD_KEY"), 5, "OLD_KEY: expected one or more keys of Fernet"),
        ((*MAP, "--connected-at", "June"), 2, "'June' is no time"),
    ],
)
async def test_wrong_usage_is_told(command: Command, arguments: tuple[str, ...], code: int, text: str) -> None:
    """One line says what is wrong, with the code that goes with it."""
    failed = await command(*arguments)
    assert failed.exit_code == code
    assert text in failed.stderr
    assert failed.stdout == ""


async def test_each_row_is_verified_by_one_refresh(
    old: asyncpg.Connection,
    users: list[UUID],
    spotify: FakeSpotify,
    tokens: TokenManager,
    work: ConnectionAdmin,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The account and the app are filled in, what Spotify refuses is listed, and again nothing is asked."""
    await granted(old, spotify, users)
    refused = sorted(users)[1]
    await old.execute("update old.tokens set refresh = 'AQ-marked' where owner = $1", refused)
    counts = await report_rows(migrating(work), tokens, as_json=False)
    assert (counts["written"], counts["verified"], counts["refused"]) == (3, 2, 1)
    asked = spotify.refresh_calls
    out = capsys.readouterr().out
    assert f"{refused} is refused: refresh token invalid" in out
    assert "marked" not in out
    for number, user in enumerate(sorted(users)):
        stored = await tokens.store.get(user)
        if user != refused:
            assert (stored.spotify_user_id, stored.display_name) == (f"account{number}", f"Name {number}")
            assert stored.client_id == "demo-client"
            assert spotify.accepts(await tokens.get_valid_token(user))
    again = await report_rows(migrating(work), tokens, as_json=False)
    assert (again["present"], again["verified"], again["refused"]) == (3, 0, 1)
    assert spotify.refresh_calls == asked


async def test_a_connection_that_does_not_decrypt_ends_no_run(
    old: asyncpg.Connection,
    users: list[UUID],
    spotify: FakeSpotify,
    tokens: TokenManager,
    work: ConnectionAdmin,
    database: Database,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that stood before, under a key that is gone, is named, and the others are verified."""
    await granted(old, spotify, users)
    first = min(users)
    async with ConnectionAdmin.open(
        database.admin_dsn, cipher=AesGcmSivCipher([AesGcmSivCipher.generate_key()])
    ) as admin:
        await anext(migrating(admin))
    await old.execute("delete from public.spotify_connections where user_id <> $1", first)
    counts = await report_rows(migrating(work), tokens, as_json=False)
    assert (counts["present"], counts["unusable"], counts["verified"]) == (1, 1, 2)
    assert f"{first} is unusable: " in capsys.readouterr().out


async def test_an_account_that_the_project_refuses_ends_no_run(
    old: asyncpg.Connection,
    users: list[UUID],
    spotify: FakeSpotify,
    tokens: TokenManager,
    work: ConnectionAdmin,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where an account may be connected by one user alone, the index is named; what was granted is saved."""
    spotify.add_account("alice")
    for user in users:
        await old.execute("insert into old.tokens values ($1, $2)", user, spotify.authorize("alice").refresh_token)
    await old.execute(
        "create unique index one_user on public.spotify_connections (spotify_user_id) where spotify_user_id <> ''"
    )
    try:
        counts = await report_rows(migrating(work), tokens, as_json=False)
    finally:
        await old.execute("drop index public.one_user")
    assert (counts["written"], counts["verified"], counts["unusable"]) == (3, 1, 2)
    out = capsys.readouterr().out
    assert out.count("SQLSTATE 23505: constraint one_user") == 2
    assert "spotify_user_id is not known: 2" in out
    assert "access_token is not known" not in out
    for user in users:
        assert spotify.accepts(await tokens.get_valid_token(user))


def migrating(work: ConnectionAdmin) -> AsyncIterator[MigratedRow]:
    """Writes the rows, also those without an account."""
    return work.migrate("old.tokens", COLUMNS, write=True, needs_account=False)


async def test_what_is_still_not_known_is_counted(
    old: asyncpg.Connection,
    users: list[UUID],
    spotify: FakeSpotify,
    tokens: TokenManager,
    work: ConnectionAdmin,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The account of a user whom Spotify refuses, and of all what its answers do not say."""
    await granted(old, spotify, users)
    await old.execute("update old.tokens set refresh = 'AQ-marked' where owner = $1", users[0])
    await report_rows(migrating(work), tokens, as_json=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("of these")]
    assert [line.removeprefix("of these, ").replace("is not known: ", "") for line in sorted(lines)] == [
        "access_token 1",
        "connected_at 3",
        "expires_at 1",
        "scope 3",
        "spotify_user_id 1",
    ]


async def test_a_look_tells_what_only_verification_writes(
    command: Command, old: asyncpg.Connection, users: list[UUID], spotify: FakeSpotify
) -> None:
    """Rows without an account are counted apart, with --verify as those that would be written; Spotify is not asked."""
    await granted(old, spotify, users)
    looked, applied = await command(*MAP), await command(*MAP, "--apply")
    only = "would be written with --verify (spotify_user_id is not known): 3\n"
    assert (looked.stdout, looked.exit_code) == (only, 0)
    assert (applied.stdout, applied.exit_code) == (only, 7)
    assert "3 rows give no connection that works; see above" in applied.stderr
    verified = await command(*MAP, "--verify")
    assert verified.stdout.startswith("would be written: 3\nof these, spotify_user_id is not known: 3\n")
    assert not await rows(old)
    assert spotify.token_calls == 0


async def test_it_stops_where_spotify_asks_to_wait(
    old: asyncpg.Connection,
    users: list[UUID],
    spotify: FakeSpotify,
    tokens: TokenManager,
    work: ConnectionAdmin,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A 429 ends it with the seconds of Retry-After; no further row is asked for, and what was written stays and is
    counted.
    """
    await granted(old, spotify, users)
    spotify.script(Answer.too_many_requests("90"))
    with pytest.raises(SpotifyUnavailable, match=r"run it again after \d+ s") as raised:
        await report_rows(migrating(work), tokens, as_json=False)
    assert 80 < (raised.value.retry_after or 0) <= 91
    assert (spotify.token_calls, len(await rows(old))) == (1, 3)
    assert "written: 3\n" in capsys.readouterr().out


async def test_a_stop_loses_no_refresh_token(
    old: asyncpg.Connection,
    users: list[UUID],
    spotify: FakeSpotify,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    work: ConnectionAdmin,
) -> None:
    """Stopped while Spotify answers, what replaces the refresh token is saved before the manager has closed."""
    await granted(old, spotify, users[:1])
    async with TokenManager(store, accounts) as tokens, asyncio.TaskGroup() as group:
        with spotify.hold() as held:
            run = group.create_task(report_rows(migrating(work), tokens, as_json=False))
            await held.reached()
            run.cancel()
    stored = await store.get(users[0])
    assert spotify.accepts_refresh(stored.refresh_token)
    assert (stored.saves, stored.spotify_user_id) == (1, "")
    async with TokenManager(store, accounts) as tokens:
        await report_rows(migrating(work), tokens, as_json=False)
    assert (await store.get(users[0])).spotify_user_id == "account0"
    assert spotify.refresh_calls == 1


async def test_verification_has_a_bounded_rate(
    old: asyncpg.Connection, users: list[UUID], spotify: FakeSpotify, tokens: TokenManager, work: ConnectionAdmin
) -> None:
    """Three refreshes take two of the pauses between them at least."""
    await granted(old, spotify, users)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await report_rows(migrating(work), tokens, as_json=False)
    assert loop.time() - began >= 2 * migrate.PACE
