"""The service of fastapi_app.py with all that it needs: a private Postgres, and Spotify and Supabase simulated.

One server, and for a browser two sites: the service is http://localhost, the single-page app http://127.0.0.1.
"""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from demo_services import print_line, simulated
from simulated_supabase import SimulatedSupabase
from spotconn import ConnectFlow
from spotconn.testing import Answer
from supabase_jwt import AccessTokens

PORT = 8766
PLAYING = Answer(json={"item": {"name": "Northbound"}})
PAGE = Path(__file__).with_name("single_page_app")


def add_simulations(app: FastAPI, supabase: SimulatedSupabase, *, api_url: str) -> None:
    """Add Supabase, and the page under the name of its site, to the service."""

    async def config(_request: Request) -> Response:
        code = f'export const API = "{api_url}";\nexport const SUPABASE = "{supabase.url}";\n'
        return Response(code, media_type="text/javascript")

    page = Starlette(routes=[Route("/config.js", config), Mount("/", StaticFiles(directory=PAGE, html=True))])
    app.mount("/supabase", supabase.app)
    app.host("127.0.0.1", page)


async def serve(build_app: Callable[..., FastAPI], scopes: tuple[str, ...]) -> None:
    """Serve until a signal ends it."""
    with socket.create_server(("127.0.0.1", int(os.environ.get("PORT") or PORT))) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each answer takes 40 ms
        port = listening.getsockname()[1]
        page_url, api_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        supabase = SimulatedSupabase(f"{api_url}/supabase", {})

        @asynccontextmanager
        async def opened() -> AsyncGenerator[dict[str, Any]]:
            async with (
                simulated(redirect_uris=[f"{page_url}/callback.html"]) as simulation,
                ConnectFlow(
                    simulation.tokens.store,
                    simulation.tokens.accounts,
                    redirect_uri=f"{page_url}/callback.html",
                    scopes=scopes,
                ) as flow,
                AccessTokens(supabase.url) as users,
                httpx.AsyncClient(base_url=simulation.tokens.accounts.api_url, timeout=10) as http,
            ):
                simulation.spotify.add_account("ben", display_name="Ben")
                simulation.spotify.on("GET", "/v1/me/player/currently-playing", PLAYING)
                ann, ben = await simulation.connect("ann"), await simulation.sign_up("ben")
                supabase.users.update({"ann@example.com": ann, "ben@example.com": ben})
                for user_id in (ann, ben):
                    bearer = f"Authorization: Bearer {supabase.access_token(user_id)}"
                    print_line(f"curl -i -H '{bearer}' {api_url}/top-tracks")
                print_line(f"Open {page_url} in a browser, and sign in as ben@example.com with any password.")
                yield {"users": users, "tokens": simulation.tokens, "flow": flow, "http": http}

        app = build_app(opened, front_end=page_url)
        add_simulations(app, supabase, api_url=api_url)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        await uvicorn.Server(config).serve(sockets=[listening])


def run(build_app: Callable[..., FastAPI], scopes: tuple[str, ...]) -> None:
    """Run the service until a signal ends it."""
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(build_app, scopes))
