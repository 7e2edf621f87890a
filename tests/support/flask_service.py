"""The Flask example on the servers of a test, for gunicorn; with WARM_UP it is used before the workers are forked."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from flask import Response, jsonify

from flask_app import build_app
from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.blocking import BlockingTokens
from support.consent import REDIRECT_URI, SCOPES

URL = os.environ["SPOTIFY_URL"]
MASTER = os.getpid()


@asynccontextmanager
async def opened() -> AsyncGenerator[TokenManager]:
    async with (
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=URL, api_url=URL) as accounts,
        ConnectionStore.open(os.environ["DATABASE_URL"], min_size=1, max_size=2) as store,
        TokenManager(store, accounts) as manager,
    ):
        yield manager


TOKENS = BlockingTokens(opened, redirect_uri=REDIRECT_URI, scopes=SCOPES)
app = build_app(TOKENS)
if "WARM_UP" in os.environ:
    TOKENS.get_valid_token(os.environ["WARM_UP"])


@app.get("/token/<user>")
def token(user: str) -> Response:
    return jsonify(pid=os.getpid(), master=MASTER, token=TOKENS.get_valid_token(user))
