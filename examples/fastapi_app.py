"""A FastAPI service: python examples/fastapi_app.py, or `uvicorn --app-dir examples fastapi_app:app` with settings.

Each of the three kinds of errors has one answer, in the form of RFC 9457 (problem details):

    AskUser       409   the user has to connect Spotify, again or with more scopes
    TryLater      503   with Retry-After
    CallEngineer  500   says nothing of the inside; the log does
"""

import asyncio
import logging
import math
import os
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Annotated, Any, TypedDict
from uuid import UUID

import httpx
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse

from demo_services import has_settings, print_line, simulated
from spotconn import AskUser, SpotconnError, SpotifyAuth, TokenManager, TryLater
from web_api import get_json

PORT = 8766
RETRY_AFTER = 5
"""Seconds that a client is asked to wait where nothing better is known."""

Opener = Callable[[], AbstractAsyncContextManager[TokenManager]]
log = logging.getLogger("fastapi_app")
router = APIRouter()


class State(TypedDict):
    """What the lifespan keeps for the requests."""

    tokens: TokenManager
    http: httpx.AsyncClient


def signed_in(x_user: Annotated[UUID, Header()], response: Response) -> UUID:
    """Who asks. A stand-in: put your sign-in here, a session or a verified JWT; anybody can send this header."""
    response.headers["Cache-Control"] = "no-store"  # the answer is this user's alone
    return x_user


def acting(*scopes: str) -> Callable[[Request, UUID], Awaitable[SpotifyAuth]]:
    """The dependency of a route that acts for whoever is signed in, and needs these scopes for it."""

    async def authenticated(request: Request, user_id: Annotated[UUID, Depends(signed_in)]) -> SpotifyAuth:
        tokens: TokenManager = request.state.tokens
        await tokens.get_valid_token(user_id, scopes=scopes)
        return tokens.auth(user_id)

    return authenticated


@router.get("/me")
async def me(request: Request, auth: Annotated[SpotifyAuth, Depends(acting())]) -> dict[str, Any]:
    profile = await get_json(request.state.http, auth, "/v1/me")
    return {"spotify_user_id": profile["id"], "display_name": profile["display_name"]}


@router.get("/top-tracks")
async def top_tracks(
    request: Request, auth: Annotated[SpotifyAuth, Depends(acting("user-top-read"))]
) -> dict[str, Any]:
    page = await get_json(request.state.http, auth, "/v1/me/top/tracks", limit=5)
    return {"tracks": [track["name"] for track in page["items"]]}


async def explained(_request: Request, error: SpotconnError) -> JSONResponse:
    """The answer to each error of spotconn."""
    match error:
        case AskUser():
            return problem(409, "connect-spotify", "Spotify has to be connected", str(error))
        case TryLater():
            log.warning("%s: %s", type(error).__name__, error)
            retry_after = max(1, math.ceil(RETRY_AFTER if error.retry_after is None else error.retry_after))
            answer = problem(503, "try-later", "Not possible just now", f"Please try again in {retry_after} seconds.")
            answer.headers["Retry-After"] = str(retry_after)
            return answer
        case _:
            log.critical("%s: %s", type(error).__name__, error)
            return problem(500, "out-of-order", "This service is out of order", "It has been logged.")


def problem(status: int, name: str, title: str, detail: str) -> JSONResponse:
    """A body of RFC 9457; `type` is a name and need not lead anywhere: use a domain of your own."""
    body = {"type": f"tag:example.com,2026:{name}", "title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, {"Cache-Control": "no-store"}, media_type="application/problem+json")


def build_app(opened: Opener) -> FastAPI:
    """The service.

    Args:
        opened: opens its TokenManager, once for the process.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[State]:
        async with opened() as tokens, httpx.AsyncClient(base_url=tokens.accounts.api_url, timeout=10) as http:
            yield {"tokens": tokens, "http": http}

    app = FastAPI(title="A service with Spotify", lifespan=lifespan)
    app.include_router(router)
    app.exception_handler(SpotconnError)(explained)
    return app


app = build_app(TokenManager.from_env)


@asynccontextmanager
async def demonstrated(url: str) -> AsyncGenerator[TokenManager]:
    """The tokens of two simulated users, one of whom has not connected Spotify."""
    async with simulated() as simulation:
        for user_id in (await simulation.connect("ann"), await simulation.sign_up("ben")):
            print_line(f"curl -i -H 'X-User: {user_id}' {url}/top-tracks")
        yield simulation.tokens


async def main() -> None:
    with socket.create_server(("127.0.0.1", int(os.environ.get("PORT") or PORT))) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        served = app if has_settings() else build_app(lambda: demonstrated(url))
        config = uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=5)
        await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
    sys.exit()
