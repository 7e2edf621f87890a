"""What each route does, once a request is known to come from where it may."""

import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from inspect import isawaitable
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from spotconn._cookies import MOST, set_cookie, surplus_cookies
from spotconn._user_ids import UserId, parse_user_id
from spotconn.connect import ConnectFlow
from spotconn.errors import ConfigurationError, ConnectFailed, SpotconnError, TryLater, UnknownUser
from spotconn.manager import TokenManager
from spotconn.web._problems import log_error
from spotconn.web._redirect_uri import RedirectUriCheck
from spotconn.web._requests import (
    FORM,
    Refused,
    bad_field,
    check_window,
    content_type,
    flag_field,
    read_form,
    read_json,
    text_field,
)
from spotconn.web._return_urls import LONGEST, checked_return_url, is_too_long, with_outcome

SCOPE = re.compile(r"[A-Za-z0-9._: -]{1,1000}")
"""All of Spotify's scopes have some 600 characters."""
NEXT = "next"
"""The field of the return URL, in a form, in JSON and in the data of the flow."""

Tokens = TokenManager | Callable[[Request], TokenManager]
Flow = ConnectFlow | Callable[[Request], ConnectFlow]
SignedIn = Callable[[Request], Awaitable[UserId | None]]


class Endpoints:
    """One method for each route.

    Args:
        tokens: the manager, or a function that finds it.
        flow: the flow, or a function that finds it.
        user: finds who is signed in.
        after: where browsers go, from `checked_return_url`.
        front_end: its origin, if there is one.
    """

    def __init__(
        self,
        tokens: Tokens,
        flow: Flow,
        user: SignedIn,
        after: str,
        front_end: str | None,
    ) -> None:
        self._tokens: Callable[[Request], TokenManager] = tokens if callable(tokens) else lambda _: tokens
        self._flow: Callable[[Request], ConnectFlow] = flow if callable(flow) else lambda _: flow
        self._user = user
        self._after = after
        self._front_end = front_end
        self._check_redirect_uri = RedirectUriCheck(front_end)

    async def connect(self, request: Request) -> Response:
        """Begin an authorization: a form is sent on to Spotify, JSON gets the URL."""
        is_form = content_type(request) == FORM
        user_id = await self._signed_in(request)
        if user_id is None:
            return self._nobody(is_form=is_form)
        fields = await (read_form if is_form else read_json)(request)
        back = self._back(fields)
        wanted: dict[str, Any] = {
            "scopes": _scopes(fields),
            "data": {NEXT: back},
            "show_dialog": flag_field(fields, "show_dialog"),
        }
        flow = self._flow(request)
        self._check_redirect_uri(request, flow.redirect_uri)
        try:
            authorization = await flow.begin(user_id, **wanted)
        except SpotconnError as error:
            if is_form:
                return _ended(back, error)
            raise
        answer = _to(authorization.url) if is_form else JSONResponse({"url": authorization.url})
        answer.headers.append("Set-Cookie", authorization.cookie)
        # A few at a time: hundreds, which another host of the domain can plant, would be more than a proxy takes.
        for name in surplus_cookies(_cookies(request), most=MOST - 1)[:MOST]:
            answer.headers.append("Set-Cookie", set_cookie(name, ""))
        return answer

    async def callback(self, request: Request) -> Response:
        """Complete the authorization of the browser that Spotify sends back, and send it on."""
        check_window(request)
        flow, user_id = self._flow(request), await self._signed_in(request)
        # Not request.url, which leads through a cache of urllib.
        query = request.scope["query_string"].decode("latin-1")
        try:
            completed = await flow.complete(f"?{query}", _cookies(request), user_id=user_id)
            if completed.user_id is None:
                raise ConfigurationError(
                    "a sign-in with Spotify came back to SpotifyRoutes: give it a ConnectFlow with a redirect URI of "
                    "its own"
                )
        except SpotconnError as error:
            return _ended(self._after, error)
        return _to(with_outcome(self._back(completed.data, strict=False), "connected"))

    async def finish(self, request: Request) -> Response:
        """Finish an authorization whose callback a page of the front end has received, for who is signed in."""
        user_id = await self._needed_user(request)
        url = text_field(await read_json(request), "url") or ""
        query = url.partition("#")[0].partition("?")[2]
        if not query:
            raise bad_field("url", "the URL that Spotify has sent the browser to, with its query")
        await self._flow(request).finish(user_id, f"?{query}")
        return await self._status(request, user_id)

    async def connection(self, request: Request) -> Response:
        """Return the status of the connection."""
        return await self._status(request, await self._needed_user(request))

    async def delete(self, request: Request) -> Response:
        """Disconnect."""
        await self._tokens(request).disconnect(await self._needed_user(request))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def disconnect(self, request: Request) -> Response:
        """Disconnect: a form is sent on, JSON gets no content."""
        if content_type(request) != FORM:
            await read_json(request)
            return await self.delete(request)
        user_id = await self._signed_in(request)
        if user_id is None:
            return self._nobody(is_form=True)
        back = self._back(await read_form(request))
        try:
            await self._tokens(request).disconnect(user_id)
        except SpotconnError as error:
            return _ended(back, error)
        return _to(with_outcome(back, "disconnected"))

    async def token(self, request: Request) -> Response:
        """Return an access token, for a player in the browser."""
        token = await self._tokens(request).get_access_token(await self._needed_user(request))
        return JSONResponse({"access_token": token.value, "expires_at": token.expires_at.isoformat()})

    async def _signed_in(self, request: Request) -> UUID | None:
        # A function may return an awaitable without being a coroutine function, so only the call shows it.
        found: object = self._user(request)
        if not isawaitable(found):
            raise TypeError("user: expected an async function that returns the id of who is signed in, or None")
        user_id: UserId | None = await found
        return None if user_id is None else parse_user_id(user_id, name="user")

    async def _needed_user(self, request: Request) -> UUID:
        user_id = await self._signed_in(request)
        if user_id is None:
            raise _unauthorized()
        return user_id

    def _nobody(self, *, is_form: bool) -> Response:
        # A page of the service can ask somebody to sign in; the answer to a form would be the end of the way.
        if is_form:
            return _to(with_outcome(self._after, "signed_out"))
        raise _unauthorized()

    async def _status(self, request: Request, user_id: UUID) -> Response:
        status = await self._tokens(request).status(user_id)
        return Response(status.model_dump_json(), media_type="application/json")

    def _back(self, fields: Mapping[str, Any], *, strict: bool = True) -> str:
        """Return where to send the browser: the checked `next`, or `after` where there is none."""
        given = text_field(dict(fields), NEXT)
        if strict and given is not None and is_too_long(given, self._front_end):
            raise bad_field(NEXT, f"at most {LONGEST} characters, with the origin of the front end")
        back = self._after if given is None else checked_return_url(given, self._front_end)
        if back is None and strict:
            raise bad_field(NEXT, "a path that begins with one slash, or a URL of the front end")
        return back or self._after


def _outcome_of(error: SpotconnError) -> str:
    """Return what the query of the page says of an error."""
    match error:
        case ConnectFailed():
            return error.reason
        case UnknownUser():
            return "unknown_user"
        case TryLater():
            return "try_later"
        case _:
            return "error"


def _ended(back: str, error: SpotconnError) -> Response:
    log_error(error)
    return _to(with_outcome(back, _outcome_of(error)))


def _cookies(request: Request) -> str:
    # HTTP/2 may send them in several headers.
    return "; ".join(request.headers.getlist("cookie"))


def _scopes(fields: dict[str, Any]) -> list[str] | None:
    scope = text_field(fields, "scope")
    if scope is None:
        return None
    if not SCOPE.fullmatch(scope):
        raise bad_field("scope", "scopes of Spotify with blanks in between")
    return scope.split()


def _to(url: str) -> Response:
    return RedirectResponse(url, HTTPStatus.SEE_OTHER)


def _unauthorized() -> Refused:
    refused = Refused(HTTPStatus.UNAUTHORIZED, "Not signed in", "Nobody is signed in.")
    refused.answer.headers["WWW-Authenticate"] = "Bearer"
    return refused
