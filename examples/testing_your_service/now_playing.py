"""A FastAPI service to be tested: it connects a user and shows what they are listening to."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

import httpx
from fastapi import FastAPI, HTTPException, Request

from spotconn import ConnectFlow, SpotconnError, TokenManager
from spotconn.web import SpotifyRoutes, problem_details

sessions: dict[str, UUID] = {}
"""Who is signed in, by the cookie of their session; yours are elsewhere."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Make manager and flow in the event loop that uses them, of the environment."""
    scopes = ["user-read-currently-playing"]
    async with (
        TokenManager.from_env() as tokens,
        ConnectFlow.from_env(tokens.store, tokens.accounts, scopes=scopes) as flow,
    ):
        app.state.tokens, app.state.flow = tokens, flow
        yield


async def signed_in(request: Request) -> UUID | None:
    """Return who is signed in."""
    return sessions.get(request.cookies.get("session", ""))


app = FastAPI(lifespan=lifespan)
app.add_exception_handler(SpotconnError, problem_details)
app.mount(
    "/spotify",
    SpotifyRoutes(tokens=lambda _: app.state.tokens, flow=lambda _: app.state.flow, user=signed_in, after="/"),
)


@app.get("/playing")
async def playing(request: Request) -> dict[str, str | None]:
    """Return the title that a user listens to, None if it is quiet."""
    user_id, tokens = await signed_in(request), app.state.tokens
    if user_id is None:
        raise HTTPException(401)
    async with httpx.AsyncClient(auth=tokens.auth(user_id), base_url=tokens.accounts.api_url) as spotify:
        answer = await spotify.get("/v1/me/player/currently-playing")
    match answer.status_code:
        case 200:
            return {"title": answer.json()["item"]["name"]}
        case 204:
            return {"title": None}
        case 401 | 403:
            raise HTTPException(409, "connect Spotify, and allow this")
        case _:
            raise HTTPException(503, "come back later")
