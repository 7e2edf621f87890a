"""The daily job of the guide: at most two letters for each authorization, however it runs, and both where it runs."""

import ast
import asyncio
import inspect
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

import remind_users
from remind_users import LETTERS, main, remind
from spotconn import ConnectionAdmin, ConnectionStore, Profile
from support.connections import grant
from support.database import Database
from support.database_clock import database_clock
from support.doc_blocks import blocks
from support.guide import GUIDES, sql_blocks
from support.mail_server import MailServer
from support.programs import run, started

DAY = timedelta(days=1)
WEEK, MONTH = LETTERS
HOSTS = 3


def test_the_guide_shows_the_job_itself() -> None:
    """The function on the page is the one of the example, but for its docstring."""
    [block] = [block for block in blocks(GUIDES / "six-months.md") if "def remind" in block.code]
    shown, own = (
        next(node for node in ast.parse(text).body if getattr(node, "name", "") == "remind")
        for text in (block.code, inspect.getsource(remind_users))
    )
    assert isinstance(shown, ast.AsyncFunctionDef)
    assert isinstance(own, ast.AsyncFunctionDef)
    assert [*map(ast.unparse, shown.body)] == [*map(ast.unparse, own.body[1:])]


class Lost(Exception):
    """The mail server did not take a letter."""


class Job:
    """The job on several hosts, and the letters that have arrived.

    Attributes:
        letters: pairs of an address and the time before the end.
    """

    def __init__(self, hosts: list[tuple[ConnectionAdmin, asyncpg.Connection]]) -> None:
        self.hosts = hosts
        self.letters: list[tuple[str, timedelta]] = []

    async def run(self, now: datetime, *, hosts: int = 1, losing: int = 0) -> None:
        """Run it on some hosts at once, each of which loses its first letters, and ends with that."""
        await asyncio.gather(*(self._run(*host, now, losing) for host in self.hosts[:hosts]))

    async def _run(self, admin: ConnectionAdmin, users: asyncpg.Connection, now: datetime, losing: int) -> None:
        lost = 0

        async def send(address: str, end: datetime) -> None:
            nonlocal lost
            if lost < losing:
                lost += 1
                raise Lost
            self.letters.append((address, end - now))

        with suppress(Lost):
            await remind(admin, users, send, now=now)


@pytest.fixture
async def job(database: Database, operator: str) -> AsyncIterator[Job]:
    sessions = [await asyncpg.connect(database.admin_dsn) for _ in range(HOSTS)]
    async with asyncpg.create_pool(operator, min_size=1, max_size=HOSTS) as pool:
        yield Job([(ConnectionAdmin(pool), session) for session in sessions])
    for session in sessions:
        await session.close()


@pytest.fixture
async def connected(store: ConnectionStore, users: list[UUID]) -> datetime:
    """When the connections of three users end; they were made just now."""
    for user in users:
        await store.save(user, grant("a"), Profile(spotify_user_id="alice"))
    end = (await store.get(users[0])).reauthorize_by
    assert end is not None
    return end


async def test_one_letter_a_month_before_and_one_a_week_before(
    job: Job, connected: datetime, admin: asyncpg.Connection, store: ConnectionStore, users: list[UUID]
) -> None:
    """Twice a day from before the month until after the end; who connects again is asked in the next half year."""
    async with database_clock(admin) as clock:
        for day in range(-32, 10):
            now = connected + day * DAY + timedelta(minutes=1)
            await clock.set_offset((now - datetime.now(UTC)).total_seconds())
            await job.run(now)
            await job.run(now)
            if day == -8:
                await store.save(users[1], grant("b"), Profile(spotify_user_id="alice"))
    assert [(address, left.days) for address, left in sorted(job.letters)] == [
        ("a", 6), ("a", 29), ("b", 29), ("c", 6), ("c", 29),
    ]  # fmt: skip


@pytest.mark.parametrize(("seed", "lossy"), [(1, False), (2, False), (3, True), (4, True)])
async def test_no_schedule_makes_a_third_letter(
    job: Job, connected: datetime, admin: asyncpg.Connection, *, seed: int, lossy: bool
) -> None:
    """Days without a run, runs at once on three hosts, and letters that are lost: each user gets one at most in the
    month and one in the week; and both where the job runs in each and no letter is lost.
    """
    chance = random.Random(seed)
    counts = Counter[tuple[str, bool]]()
    async with database_clock(admin) as clock:
        for day in sorted(chance.sample(range(-31, 3), 12)):
            now = connected + day * DAY + timedelta(minutes=1)
            await clock.set_offset((now - datetime.now(UTC)).total_seconds())
            for _ in range(chance.choice([1, 2])):
                await job.run(now, hosts=chance.choice([1, HOSTS]), losing=chance.randint(0, 1) * lossy)
    for address, left in job.letters:
        counts[address, left <= WEEK] += 1
        assert timedelta(0) < left <= MONTH
    assert set(counts.values()) == {1}
    assert lossy or len(counts) == 6


ADDRESSES = ["1@example.com", "refused@example.com", "jörg@example.com", "a@", "a\nb@example.com", "6@example.com"]
"""In the order of the list; to those between the first and the last no letter can be sent."""


@pytest.mark.long
async def test_as_a_program(
    database: Database, store: ConnectionStore, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail server that is away costs nobody a letter. Killed between mark and letter it writes no second time; the
    others get theirs at the next run, and an address that is refused, or is none, does not hold them up.
    """
    for user, address in zip(sorted(uuid4() for _ in ADDRESSES), ADDRESSES, strict=True):
        await admin.execute("insert into auth.users (id, email) values ($1, $2)", user, address)
        await store.save(user, grant("a"), Profile(spotify_user_id="alice"))
    await admin.execute("update public.spotify_connections set connected_at = now() - interval '170 days'")
    mail = MailServer()
    settings = {
        "DATABASE_URL": database.admin_dsn,
        "SMTP_HOST": "127.0.0.1",
        "MAIL_FROM": "us@example.com",
        "CONNECT_PAGE": "https://service.example/profile",
    }
    async with mail.serve():
        mail.hold.clear()
        async with started("remind_users.py", SMTP_PORT=str(mail.port), **settings) as process, asyncio.timeout(60):
            await mail.waiting.wait()
            process.kill()
            await process.wait()
        assert await admin.fetchval("select count(*) from spotconn.reminder") == 1
    for name, value in (settings | {"SMTP_PORT": str(mail.port)}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionRefusedError):  # nobody listens there any more
        await main()
    assert await admin.fetchval("select count(*) from spotconn.reminder") == 1
    async with mail.serve():
        programs = [run("remind_users.py", SMTP_PORT=str(mail.port), **settings) for _ in range(2)]
        ends = await asyncio.gather(*programs)
    assert [status for status, _, _ in ends] == [0, 0]
    assert sum(out.count("no letter can be sent to an address\n") for _, out, _ in ends) == len(ADDRESSES) - 2
    assert mail.recipients == ["6@example.com"]
    assert "https://service.example/profile" in str(mail.letters[0])


async def test_what_keeps_letters_back_is_said(
    database: Database, connected: datetime, admin: asyncpg.Connection, operator: str
) -> None:
    """A missing grant in one line; users whose row of auth.users has no address by their number. Both end with 1. With
    the grants of the guide the addresses of either table can be read.
    """
    await admin.execute("update public.spotify_connections set connected_at = now() - interval '178 days'")
    await admin.execute("update auth.users set email = null")
    mail = MailServer()
    texts = {"MAIL_FROM": "us@example.com", "CONNECT_PAGE": "https://service.example/profile"}
    own, theirs = (block.replace("my_operator", "operator") for block in sql_blocks("six-months.md"))
    async with mail.serve():
        settings = texts | {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(mail.port), "DATABASE_URL": operator}
        assert await run("remind_users.py", **settings) == (
            1, "InsufficientPrivilegeError: permission denied for schema auth\n", ""
        )  # fmt: skip
        await admin.execute("create table public.users (id integer primary key, email text)")
        try:
            await admin.execute(own + theirs)
            assert await run("remind_users.py", **settings) == (1, "0 users marked, 3 without an address\n", "")
            session = await asyncpg.connect(operator)
            assert await session.fetch("select email from public.users where id = $1", 1) == []
            await session.close()
        finally:
            await admin.execute("drop table public.users; drop owned by operator")
            await admin.execute("grant service_role to operator")
    assert mail.letters == []


async def test_without_settings_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables are named."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ValueError, match=r"^set CONNECT_PAGE, DATABASE_URL, MAIL_FROM, SMTP_HOST, SMTP_PORT$"):
        await main()
