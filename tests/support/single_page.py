"""The FastAPI example and its single-page app, on one server that is two sites: 127.0.0.1 and localhost."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from fastapi_app import SCOPES, State, build_app
from simulated_supabase import SimulatedSupabase
from single_page_demo import add_simulations
from spotconn import ConnectFlow, ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing._server import serve
from supabase_jwt import AccessTokens


@dataclass(frozen=True)
class Sites:
    """What runs.

    Attributes:
        page_url: of the page.
        api_url: of the service.
        supabase: where users sign in.
        client: of the service.
    """

    page_url: str
    api_url: str
    supabase: SimulatedSupabase
    client: httpx.AsyncClient

    def bearer(self, user_id: UUID) -> dict[str, str]:
        """The headers of a user's request."""
        return {"Authorization": f"Bearer {self.supabase.access_token(user_id)}"}

    async def get(self, path: str, user_id: UUID) -> httpx.Response:
        """What the service answers to a user."""
        return await self.client.get(path, headers=self.bearer(user_id))


@asynccontextmanager
async def running(store: ConnectionStore, accounts: SpotifyAccounts, users: dict[str, UUID]) -> AsyncGenerator[Sites]:
    """Run both.

    Args:
        store: of the service.
        accounts: of the service.
        users: who may sign in, by their email addresses.
    """
    app: FastAPI
    state: Mapping[str, object] | None

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state or {})}, receive, send)

    async with serve(dispatch) as page_url:
        api_url = page_url.replace("127.0.0.1", "localhost")
        supabase = SimulatedSupabase(f"{api_url}/supabase", users)

        @asynccontextmanager
        async def opened() -> AsyncGenerator[State]:
            async with (
                TokenManager(store, accounts) as tokens,
                ConnectFlow(store, accounts, redirect_uri=f"{page_url}/callback.html", scopes=SCOPES) as flow,
                AccessTokens(supabase.url) as verifier,
                httpx.AsyncClient(base_url=accounts.api_url, timeout=10) as http,
            ):
                yield {"users": verifier, "tokens": tokens, "flow": flow, "http": http}

        app = build_app(opened, front_end=page_url)
        add_simulations(app, supabase, api_url=api_url)
        async with (
            app.router.lifespan_context(app) as state,
            httpx.AsyncClient(base_url=api_url, timeout=60) as client,
        ):
            yield Sites(page_url, api_url, supabase, client)
