"""A Flask service: python examples/flask_app.py, or `gunicorn --chdir examples flask_app:app` with settings.

A profile page with connect, callback, status, disconnect and one call of the Web API. All threads of a worker share one
`BlockingTokens`, which starts in each worker at its first call.
"""

import os
import secrets
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from html import escape
from typing import Any
from uuid import UUID

import requests
from flask import Blueprint, Flask, Response, abort, current_app, jsonify, redirect, request, session
from werkzeug.serving import WSGIRequestHandler, make_server

from demo_services import SCOPES, has_settings, print_line, simulated
from spotconn import AskUser, ConnectFailed, MissingScope, SpotconnError, TokenManager, TryLater
from spotconn.blocking import BlockingTokens

PORT = 8767
CONNECT = '<form method="post" action="/connect"><button>Connect Spotify</button></form>'
DISCONNECT = '<form method="post" action="/disconnect"><button>Disconnect</button></form>'


routes = Blueprint("spotify", __name__)


def tokens() -> BlockingTokens:
    found: BlockingTokens = current_app.extensions["spotconn"]
    return found


def signed_in() -> UUID | int:
    user: UUID | int = session.get("user") or abort(401)
    return user


@routes.get("/sign-in/<uuid:user_id>")
@routes.get("/sign-in/<int:user_id>")
def sign_in(user_id: UUID | int) -> Any:
    """A stand-in for your sign-in: anybody may be any user here."""
    session["user"] = user_id
    return redirect("/profile")


@routes.get("/profile")
def profile() -> str:
    status = tokens().status(signed_in())
    if status.connected and not status.reauthorization:
        return f"Connected to Spotify. <a href='/top-tracks'>Your top tracks</a> {DISCONNECT}"
    return f"Not connected. {CONNECT}"


@routes.post("/connect")
def connect() -> Any:
    user = signed_in()
    # A new consent takes the place of the old one: ask for what that has, too, and for what a call has missed.
    scopes = {*SCOPES, *(tokens().status(user).scope or ()), *session.get("missing", ())}
    return redirect(tokens().start(user, scopes=scopes), 303)


@routes.get("/callback")
def callback() -> Any:
    try:
        tokens().finish(signed_in(), request.url)
    except ConnectFailed as error:
        if error.reason != "state_used":  # a page that is loaded twice: the profile shows whether it is connected
            raise
    session.pop("missing", None)
    return redirect("/profile", 303)


@routes.post("/disconnect")
def disconnect() -> Any:
    tokens().disconnect(signed_in())
    return redirect("/profile", 303)


@routes.get("/top-tracks")
def top_tracks() -> Any:
    auth = tokens().auth(signed_in(), scopes=["user-top-read"])
    answer = requests.get(f"{tokens().api_url}/v1/me/top/tracks", params={"limit": 5}, auth=auth, timeout=10)
    answer.raise_for_status()
    return jsonify([track["name"] for track in answer.json()["items"]])


@routes.errorhandler(SpotconnError)
def explained(error: SpotconnError) -> tuple[str, int, dict[str, str]]:
    if isinstance(error, MissingScope):
        session["missing"] = sorted(error.missing)
    match error:
        case AskUser():
            return f"{escape(str(error))} {CONNECT}", 409, {}  # it may quote Spotify
        case TryLater():
            return "Not possible just now; please try again.", 503, {"Retry-After": f"{error.retry_after or 5:.0f}"}
        case _:
            current_app.logger.critical("%s: %s", type(error).__name__, error)
            return "This service is out of order.", 500, {}


@routes.after_request
def private(answer: Response) -> Response:
    answer.headers.update({"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
    return answer


def build_app(spotify: BlockingTokens) -> Flask:
    service = Flask(__name__)
    service.secret_key = os.environ.get("SECRET_KEY") or secrets.token_bytes()
    # Lax: another site cannot post with this cookie. Behind https set SESSION_COOKIE_SECURE, too.
    service.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    service.extensions["spotconn"] = spotify
    service.register_blueprint(routes)
    return service


app = build_app(BlockingTokens.from_env(scopes=SCOPES))


def demonstrate(port: int) -> None:
    """Serve with a private Postgres and a simulated Spotify, which run in the event loop of the tokens."""
    found: dict[str, str] = {}

    @asynccontextmanager
    async def opened() -> AsyncGenerator[TokenManager]:
        async with simulated() as simulation:
            simulation.spotify.add_account("ann", display_name="Ann")
            found["user"] = str(await simulation.sign_up("ann"))
            yield simulation.tokens

    uri = f"http://127.0.0.1:{port}/callback"
    with BlockingTokens(opened, redirect_uri=uri, scopes=SCOPES) as spotify:
        spotify.status(UUID(int=1))  # opens it
        print_line(f"Open http://127.0.0.1:{port}/sign-in/{found['user']} in a browser; stop with Ctrl-C.")
        serve(build_app(spotify), port)


class Handler(WSGIRequestHandler):
    """Logs no requests: the URL of the callback holds a code."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Do nothing."""


def serve(service: Flask, port: int) -> None:
    make_server("127.0.0.1", port, service, threaded=True, request_handler=Handler).serve_forever()


def main() -> None:
    port = int(os.environ.get("PORT") or PORT)
    try:
        serve(app, port) if has_settings() else demonstrate(port)
    except KeyboardInterrupt:
        sys.exit()


if __name__ == "__main__":
    main()
