"""What a user does to connect, and what waits in the database meanwhile."""

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn import Authorization, ConnectFailed, ConnectFlow

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

REDIRECT_URI = "http://127.0.0.1:8000/callback"
SCOPES = ["user-read-email", "user-top-read"]


async def agree(url: str, account: str = "alice", *, decision: str = "agree") -> str:
    """What a user does on Spotify's consent page: the callback URL that their browser is redirected to."""
    form = dict(parse_qsl(urlsplit(url).query)) | {"account": account, "decision": decision}
    async with httpx.AsyncClient(timeout=60, verify=False) as browser:
        answer = await browser.post(url.partition("?")[0], data=form)
    location: str = answer.headers["location"]
    return location


async def pending(admin: asyncpg.Connection) -> int:
    """How many connect attempts wait in the database, unused."""
    count: int = await admin.fetchval("select count(*) from spotconn.pending_connect where used_at is null")
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


def sent(*authorizations: Authorization) -> str:
    """The Cookie header of a browser that has begun these."""
    return "; ".join(["session=1", *(one.cookie.partition(";")[0] for one in authorizations)])


def state_of(url: str) -> str:
    """The state in a URL."""
    return parse_qs(urlsplit(url).query)["state"][0]


async def waiting(connection: "asyncpg.Connection | PoolConnectionProxy[asyncpg.Record]") -> list[UUID]:
    """Whose connect attempts a connection to the database can see."""
    return [row["user_id"] for row in await connection.fetch("select user_id from spotconn.pending_connect")]
