"""The routes of the profile page: what a browser may ask for. Those below /spotify are the library's."""

from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from uuid import UUID

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from pages import problem_page, profile_page, sign_in_page
from service import Service, outcome_words, words
from sessions import Session, Sessions, cookie_name
from spotconn import SpotconnError
from spotconn.web import SpotifyRoutes

STYLE = Path(__file__).with_name("style.css")


def build_app(service: Service) -> Starlette:
    """The app."""
    site = Site(service)
    return Starlette(
        routes=[
            Route("/", site.home, methods=["GET"]),
            Route("/sign-in", site.sign_in, methods=["POST"]),
            Route("/sign-out", site.sign_out, methods=["POST"]),
            Route("/profile", site.profile, methods=["GET"]),
            Route("/style.css", site.style, methods=["GET"]),
            Mount(
                "/spotify",
                SpotifyRoutes(tokens=service.tokens, flow=service.flow, user=site.user_id, after="/profile"),
            ),
        ],
        exception_handlers={HTTPException: site.no_page},
        # A name that another site has pointed at this address is no name of this one.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", service.host])],
    )


class Site:
    """One method for each route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sessions = Sessions()
        self._cookie = cookie_name(secure=service.secure)

    async def home(self, request: Request) -> Response:
        """The sign-in page."""
        session = self._session(request)
        if session.user is not None:
            return _to("/profile")
        return self._page(session, sign_in_page(session, list(self._service.users)))

    async def sign_in(self, request: Request) -> Response:
        """A new session for one of the users."""
        session = await self._sender(request)
        user = (await request.form()).get("user")
        if session is None or not isinstance(user, str) or user not in self._service.users:
            return _refused()
        self._sessions.end(session)
        return self._named(self._sessions.start(user), _to("/profile"))

    async def sign_out(self, request: Request) -> Response:
        """The end of a session."""
        session = await self._sender(request)
        if session is None:
            return _refused()
        self._sessions.end(session)
        return _to("/")

    async def profile(self, request: Request) -> Response:
        """The user's own page, with the outcome that the library's routes have put into its query."""
        session = self._session(request)
        user_id = await self.user_id(request)
        if user_id is None:
            return _to("/")
        try:
            status, tracks = await self._service.view(user_id)
        except SpotconnError as error:
            return self._page(session, problem_page(session, words(error)), HTTPStatus.SERVICE_UNAVAILABLE)
        notice = outcome_words(request.query_params.get("spotify"), status)
        apps_url, now = self._service.apps_url, datetime.now(UTC)
        page = profile_page(session, status, tracks, notice=notice, apps_url=apps_url, now=now)
        return self._page(session, page)

    async def user_id(self, request: Request) -> UUID | None:
        """Who is signed in."""
        return self._service.users.get(self._session(request).user or "")

    async def no_page(self, request: Request, error: Exception) -> Response:
        """The page for an address where nothing is, or only what forms are sent to."""
        status = HTTPStatus(error.status_code) if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
        session = self._session(request)
        return self._page(session, problem_page(session, "There is no page at this address."), status)

    async def style(self, _request: Request) -> Response:
        """The one style sheet."""
        return _with_security_headers(FileResponse(STYLE))

    def _session(self, request: Request) -> Session:
        cookie = request.cookies.get(self._cookie)
        return self._sessions.get(cookie) or self._sessions.visitor(cookie)

    async def _sender(self, request: Request) -> Session | None:
        """The session whose form this is; None where the form came from elsewhere."""
        session = self._session(request)
        csrf = (await request.form()).get("csrf")
        return session if session.sent_by(csrf) else None

    def _page(self, session: Session, html: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
        return self._named(
            session,
            _with_security_headers(HTMLResponse(html, status), form_action=f"'self' {self._service.spotify_url}"),
        )

    def _named(self, session: Session, response: Response) -> Response:
        # Lax: the browser must send it along when Spotify redirects here; a form of another site gets none.
        response.set_cookie(self._cookie, session.id, httponly=True, samesite="lax", secure=self._service.secure)
        return response


def _to(url: str) -> Response:
    return _with_security_headers(RedirectResponse(url, HTTPStatus.SEE_OTHER))


def _refused() -> Response:
    page = problem_page(Session(), "This form is out of date. Go back to the page, and try again.")
    return _with_security_headers(HTMLResponse(page, HTTPStatus.FORBIDDEN))


def _with_security_headers(response: Response, *, form_action: str = "'self'") -> Response:
    # A form may lead to Spotify: browsers hold the redirect that answers a form to form-action as well.
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action {form_action}"
    )
    # Not no-referrer: a form then says that its origin is null, and older browsers say nothing else of it.
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
