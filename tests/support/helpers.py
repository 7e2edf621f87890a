"""Small steps that several tests share."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn import ConnectFailed, ConnectFlow, Connection, ConnectionStore, Profile, TokenGrant
from spotconn.testing import FakeSpotify

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

REDIRECT_URI = "http://127.0.0.1:8000/callback"
SCOPES = ["user-read-email", "user-top-read"]


def grant(name: str, minutes: float = 60) -> TokenGrant:
    ends = datetime.now(UTC) + timedelta(minutes=minutes)
    return TokenGrant(access_token=f"access-{name}", refresh_token=f"refresh-{name}", expires_at=ends)


async def connect(
    store: ConnectionStore,
    spotify: FakeSpotify,
    user_id: UUID,
    *,
    account: str = "alice",
    ttl: float = 3600,
    scope: frozenset[str] | None = frozenset({"user-read-email"}),
) -> Connection:
    """Store a connection to an account of the fake, whose access token ends `ttl` seconds from now."""
    spotify.add_account(account)
    grant = spotify.authorize(account, scope or ())
    ends = datetime.now(UTC) + timedelta(seconds=ttl)
    grant = grant.model_copy(update={"expires_at": ends, "scope": scope})
    return await store.save(user_id, grant, Profile(spotify_user_id=account))


async def agree(url: str, account: str = "alice", *, decision: str = "agree") -> str:
    """What a user does on Spotify's consent page: the callback URL that their browser is redirected to."""
    form = dict(parse_qsl(urlsplit(url).query)) | {"account": account, "decision": decision}
    async with httpx.AsyncClient() as browser:
        answer = await browser.post(url.partition("?")[0], data=form)
    location: str = answer.headers["location"]
    return location


async def rows(admin: asyncpg.Connection) -> list[asyncpg.Record]:
    """All stored connections, seen as nobody's user."""
    return await admin.fetch("select * from public.spotify_connections order by user_id")


async def pending(admin: asyncpg.Connection) -> int:
    """How many connect attempts wait in the database."""
    count: int = await admin.fetchval("select count(*) from spotconn.pending_connect")
    return count


async def refused(flow: ConnectFlow, user: UUID, callback: str) -> str:
    """Why a callback is refused."""
    with pytest.raises(ConnectFailed) as raised:
        await flow.finish(user, callback)
    return raised.value.reason


def altered(callback: str, **changes: str) -> str:
    """A callback with other parameters; an empty one is left out."""
    parts = urlsplit(callback)
    query = {name: value for name, value in (dict(parse_qsl(parts.query)) | changes).items() if value}
    return urlunsplit(parts._replace(query=urlencode(query)))


def state_of(url: str) -> str:
    """The state in a URL."""
    return parse_qs(urlsplit(url).query)["state"][0]


async def waiting(connection: "asyncpg.Connection | PoolConnectionProxy[asyncpg.Record]") -> list[UUID]:
    """Whose connect attempts a connection to the database can see."""
    return [row["user_id"] for row in await connection.fetch("select user_id from spotconn.pending_connect")]


async def descendants(pid: int) -> list[int]:
    """The children and grandchildren of a process, once there are any."""
    async with asyncio.timeout(20):
        while not (found := _children(pid)):
            await asyncio.sleep(0.02)
    return found + [grandchild for child in found for grandchild in _children(child)]


async def gone(pids: list[int], folder: Path | None = None) -> None:
    """Wait until processes have ended and a folder, if one is given, is empty."""
    async with asyncio.timeout(20):
        while any(Path(f"/proc/{pid}").exists() for pid in pids) or (folder and list(folder.iterdir())):
            await asyncio.sleep(0.02)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
