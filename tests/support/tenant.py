"""A signed-in user who sends requests to the API of the project: what PostgREST makes of each."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg


class Tenant:
    """Sends requests as one user: each is a transaction with the role `authenticated` and the claims of that user.

    Args:
        session: of a login that may become `authenticated`.
        user_id: who is signed in.
    """

    def __init__(self, session: asyncpg.Connection, user_id: UUID) -> None:
        self.session = session
        self.user_id = user_id

    @asynccontextmanager
    async def request(self) -> AsyncGenerator[asyncpg.Connection]:
        """Context manager: the transaction of one request."""
        async with self.session.transaction():
            claims = json.dumps({"sub": str(self.user_id), "role": "authenticated"})
            await self.session.execute(
                "select set_config('role', 'authenticated', true), set_config('request.jwt.claims', $1, true)", claims
            )
            yield self.session

    async def send(self, query: str, *args: object) -> str:
        """Send one statement. Return its command tag ("UPDATE 1") or the SQLSTATE of its refusal."""
        try:
            async with self.request() as session:
                return await session.execute(query, *args)
        except asyncpg.PostgresError as error:
            return error.sqlstate or "?"

    async def patch(self, **values: object) -> str:
        """Change columns of the own row, as a PATCH does. Return as `send`."""
        columns = ", ".join(f"{name} = ${place}" for place, name in enumerate(values, 1))
        return await self.send(f"update public.spotify_connections set {columns}", *values.values())


@asynccontextmanager
async def signed_in(dsn: str, user_id: UUID) -> AsyncGenerator[Tenant]:
    """Context manager: a tenant with a session of its own."""
    session = await asyncpg.connect(dsn)
    try:
        yield Tenant(session, user_id)
    finally:
        await session.close()
