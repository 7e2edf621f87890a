"""The routes of a service whose users connect Spotify, as an ASGI app to mount."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from spotconn._tracebacks import scrubbed_method
from spotconn.errors import SpotconnError
from spotconn.web._endpoints import Endpoints, Flow, SignedIn, Tokens
from spotconn.web._headers import add_headers, options
from spotconn.web._problems import problem, problem_details
from spotconn.web._requests import Refused, check_site
from spotconn.web._return_urls import checked_origin, checked_return_url

Handler = Callable[[Request], Awaitable[Response]]


class SpotifyRoutes:
    """Lets the users of a web service connect Spotify: `app.mount("/spotify", SpotifyRoutes(...))`.

    | route | of | answer |
    |---|---|---|
    | POST /connect | a form, or JSON | 303 to Spotify; `{"url": …}` |
    | GET /callback | the browser that Spotify sends back | 303 to `next` or `after` |
    | POST /callback | JSON `{"url": …}`, of a page that is the redirect URI | the status, as GET /connection |
    | GET /connection | | the fields of `ConnectionStatus` |
    | DELETE /connection | | 204 |
    | POST /disconnect | a form, or JSON | 303 to `next` or `after`; 204 |
    | GET /token | only with `token=True` | `{"access_token": …, "expires_at": …}` |

    A page learns by `?spotify=` how it ended: `connected`, `disconnected`, `signed_out`, `unknown_user`, the `reason`
    of a `ConnectFailed`, `try_later` or `error`. JSON gets problem details (RFC 9457). What a browser sends for a page
    of another site is refused, by `Sec-Fetch-Site` and `Origin`.

    Args:
        tokens: the manager, or a function that finds it from the request, as in `request.state.tokens`.
        flow: the flow, or a function that finds it from the request. Its redirect URI leads to GET /callback, or to a
            page of the front end that posts its URL to POST /callback.
        user: async; returns the id of who is signed in, from a session or a verified token; None for nobody.
        after: where browsers go afterwards: a path, or a URL of the front end. With a front end a path is one there.
        front_end: its origin, such as https://app.example.com, if it is another one than that of the service. Its
            pages, and no others, may then call from a browser (CORS).
        token: whether GET /token hands out access tokens, as the Web Playback SDK needs them.

    Raises:
        ValueError: `after` or `front_end` is malformed.
    """

    def __init__(
        self,
        *,
        tokens: Tokens,
        flow: Flow,
        user: SignedIn,
        after: str,
        front_end: str | None = None,
        token: bool = False,
    ) -> None:
        self._front_end = None if front_end is None else checked_origin(front_end)
        self._after = _checked_after(after, self._front_end)
        endpoints = Endpoints(tokens, flow, user, self._after, self._front_end)
        self._callback = endpoints.callback
        self._routes: dict[str, dict[str, Handler]] = {
            "/connect": {"POST": endpoints.connect},
            # No HEAD: it must change nothing, and a GET of the callback does.
            "/callback": {"GET": self._callback, "POST": endpoints.finish},
            "/connection": {"GET": endpoints.connection, "HEAD": endpoints.connection, "DELETE": endpoints.delete},
            "/disconnect": {"POST": endpoints.disconnect},
        }
        if token:
            self._routes["/token"] = {"GET": endpoints.token, "HEAD": endpoints.token}

    def __repr__(self) -> str:
        """Return the settings."""
        return f"<SpotifyRoutes after={self._after!r} front_end={self._front_end!r} token={'/token' in self._routes}>"

    @scrubbed_method
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as an ASGI app."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        request = Request(scope, receive)
        response = await self._answer(request)
        add_headers(request, response, self._front_end)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        methods = self._routes.get(_route_path(request.scope))
        if methods is None:
            return problem(HTTPStatus.NOT_FOUND, "not-found", "Not found", "")
        if request.method == "OPTIONS":
            return options(request, [*methods, "OPTIONS"], self._front_end)
        if request.method not in methods:
            return _not_allowed([*methods, "OPTIONS"])
        return await self._handled(request, methods[request.method])

    async def _handled(self, request: Request, handler: Handler) -> Response:
        try:
            if handler != self._callback:  # where Spotify sends a browser, across sites
                check_site(request, self._front_end)
            return await handler(request)
        except Refused as refused:
            return refused.answer
        except SpotconnError as error:
            return await problem_details(request, error)


def _checked_after(after: str, front_end: str | None) -> str:
    checked = checked_return_url(after, front_end)
    if checked is None:
        raise ValueError("after: expected a path that begins with one slash, or a URL of front_end")
    return checked


def _route_path(scope: Scope) -> str:
    """Return the path below the mount.

    `root_path` ends with it. What stands before, of a proxy, may be part of the path or not (FastAPI's `root_path`).
    """
    path, root_path = scope["path"], scope.get("root_path", "")
    for prefix in (root_path, root_path.removeprefix(scope.get("app_root_path", ""))):
        if prefix and path.startswith(f"{prefix}/"):
            return str(path[len(prefix) :])
    return str(path)


def _not_allowed(methods: list[str]) -> Response:
    answer = problem(HTTPStatus.METHOD_NOT_ALLOWED, "bad-request", "Method not allowed", "")
    answer.headers["Allow"] = ", ".join(methods)
    return answer
