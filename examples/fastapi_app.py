"""A FastAPI service for a single-page app of another site, whose users sign in at Supabase.

Run it with `python examples/fastapi_app.py`: all that it needs is then simulated, and so is the page. Or run it with
`uvicorn --app-dir examples fastapi_app:app` and the settings of the library and these:

- SUPABASE_URL: of the project, such as https://abcdefghijkl.supabase.co
- SUPABASE_JWT_SECRET: its legacy secret, if it still signs with HS256
- FRONT_END: the origin of the single-page app, one of whose pages is SPOTIFY_REDIRECT_URI
"""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, TypedDict
from uuid import UUID

import httpx
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer

from single_page_demo import run
from spotconn import ConnectFlow, SpotconnError, SpotifyAuth, TokenManager
from spotconn.web import PROBLEM_RESPONSES, SpotifyRoutes, problem_details
from supabase_jwt import AccessTokens
from web_api import get_json

SCOPES = ("user-read-currently-playing", "user-read-email", "user-top-read")


class State(TypedDict):
    """What the lifespan opens for the requests."""

    users: AccessTokens
    tokens: TokenManager
    flow: ConnectFlow
    http: httpx.AsyncClient


Opener = Callable[[], AbstractAsyncContextManager[State]]
router = APIRouter(
    dependencies=[Depends(HTTPBearer(auto_error=False))],
    responses=PROBLEM_RESPONSES | {401: {"description": "No valid access token of Supabase."}},
)


async def user_of(request: Request) -> UUID | None:
    """Return who sends a request."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    user_id: UUID | None = await request.state.users.user_id(token) if scheme.lower() == "bearer" else None
    return user_id


async def signed_in(request: Request, response: Response) -> UUID:
    """Who sends a request, as a dependency."""
    user_id = await user_of(request)
    if user_id is None:
        raise HTTPException(401, "Sign in first.", {"WWW-Authenticate": "Bearer"})
    response.headers["Cache-Control"] = "no-store"  # the answer is this user's alone
    return user_id


def acting(*scopes: str) -> Callable[[Request, UUID], Awaitable[SpotifyAuth]]:
    """The dependency of a route that acts for whoever is signed in, and needs these scopes for it."""

    async def authenticated(request: Request, user_id: Annotated[UUID, Depends(signed_in)]) -> SpotifyAuth:
        auth: SpotifyAuth = request.state.tokens.auth(user_id, scopes=scopes)
        return auth

    return authenticated


@router.get("/now-playing")
async def now_playing(
    request: Request, auth: Annotated[SpotifyAuth, Depends(acting("user-read-currently-playing"))]
) -> dict[str, str | None]:
    playing = await get_json(request.state.http, auth, "/v1/me/player/currently-playing")
    return {"title": playing["item"]["name"] if playing and playing["item"] else None}


@router.get("/top-tracks")
async def top_tracks(
    request: Request,
    auth: Annotated[SpotifyAuth, Depends(acting("user-top-read"))],
    limit: Annotated[int, Query(ge=1, le=50)] = 5,
) -> dict[str, list[str]]:
    page = await get_json(request.state.http, auth, "/v1/me/top/tracks", limit=limit)
    return {"tracks": [track["name"] for track in page["items"]]}


def build_app(opened: Opener, *, front_end: str | None) -> FastAPI:
    """Make the service.

    Args:
        opened: opens what the requests need, once for the process.
        front_end: the origin of the single-page app; None if the service serves it itself.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[State]:
        async with opened() as state:
            yield state

    app = FastAPI(title="A service with Spotify", lifespan=lifespan)
    app.include_router(router)
    app.mount(
        "/spotify",
        SpotifyRoutes(
            tokens=lambda request: request.state.tokens,
            flow=lambda request: request.state.flow,
            user=user_of,
            after="/",
            front_end=front_end,
        ),
    )
    app.add_exception_handler(SpotconnError, problem_details)
    if front_end is not None:
        # For all paths: it answers the preflights of those below /spotify, too.
        methods, headers = ["GET", "POST", "DELETE"], ["Authorization", "Content-Type"]
        app.add_middleware(CORSMiddleware, allow_origins=[front_end], allow_methods=methods, allow_headers=headers)
    return app


@asynccontextmanager
async def from_settings() -> AsyncGenerator[State]:
    """What the requests need, by the settings of the environment."""
    async with (
        TokenManager.from_env() as tokens,
        ConnectFlow.from_env(tokens.store, tokens.accounts, scopes=SCOPES) as flow,
        AccessTokens(os.environ["SUPABASE_URL"], legacy_secret=os.environ.get("SUPABASE_JWT_SECRET")) as users,
        httpx.AsyncClient(base_url=tokens.accounts.api_url, timeout=10) as http,
    ):
        yield {"users": users, "tokens": tokens, "flow": flow, "http": http}


app = build_app(from_settings, front_end=os.environ.get("FRONT_END"))

if __name__ == "__main__":
    run(build_app, SCOPES)
