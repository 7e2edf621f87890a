"""The control page of the simulated Spotify: what a person, or a program, makes it do while it runs."""

import re
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from spotconn.testing._answers import Answer
from spotconn.testing._control_page import ACTIONS, MOST_FAILURES, SECRET_PATTERN, control_page
from spotconn.testing._forms import of_another_site, read_form
from spotconn.testing._simulation import Simulation
from spotconn.testing._spotify_pages import OTHER_SITE, error_page

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class Failure:
    """A way in which requests fail.

    Attributes:
        words: for people.
        answer: to each request.
        web: whether requests to the Web API fail; otherwise those to the token endpoint.
    """

    words: str
    answer: Answer
    web: bool = False


_QUOTA = {"error": {"status": 429, "message": "Too many requests", "reason": "QUOTA_EXCEEDED"}}
_NO_PREMIUM = b"Active premium subscription required for the owner of the app."
_NOT_LISTED = b"User not registered in the Developer Dashboard"

FAILURES = {
    "token-503": Failure("Token endpoint: 503 Service Unavailable", Answer.unavailable()),
    "token-429": Failure("Token endpoint: 429, retry after 60 s", Answer.too_many_requests("60")),
    "token-lost": Failure("Token endpoint: done, and the answer is lost", Answer.reset()),
    "token-silent": Failure("Token endpoint: no answer", Answer.black_hole()),
    "web-503": Failure("Web API: 503 Service Unavailable", Answer.unavailable(), web=True),
    "web-429": Failure("Web API: 429, retry after 60 s", Answer.too_many_requests("60"), web=True),
    "web-quota": Failure("Web API: 429, the quota is spent", Answer(status=429, json=_QUOTA), web=True),
    "web-premium": Failure("Web API: 403, the owner has no Premium", Answer(status=403, body=_NO_PREMIUM), web=True),
    "web-user": Failure("Web API: 403, the user is not registered", Answer(status=403, body=_NOT_LISTED), web=True),
}
"""By what a form has for them."""


class Control:
    """The endpoints of the control page."""

    def __init__(self, spotify: Simulation) -> None:
        self._spotify = spotify

    async def show(self, request: Request) -> Response:
        """Answer with the page."""
        spotify = self._spotify
        words = {key: failure.words for key, failure in FAILURES.items()}
        accounts, done = list(spotify.accounts.values()), request.query_params.get("done")
        granted = spotify.consents_by_app()
        page = control_page(accounts, granted, words, spotify.pending_answers(), apps=spotify.apps, done=done)
        return HTMLResponse(page, headers=HEADERS)

    async def act(self, request: Request) -> Response:
        """Do what a form says, and lead back to the page."""
        if of_another_site(request):
            return HTMLResponse(error_page(OTHER_SITE), 403)
        form = await read_form(request)
        if fault := self._carry_out(form):
            return HTMLResponse(error_page(fault), 400)
        return RedirectResponse(f"/?done={form['action']}", 303)

    def _carry_out(self, form: dict[str, str]) -> str | None:
        """Do what a form says, or return what is wrong with it."""
        if form.get("client_id") not in {None, *self._spotify.apps}:
            return "client_id: expected that of a registered app"
        match form.get("action"):
            case "fail":
                return self._fail(form)
            case "reset":
                self._spotify.forget_answers()
                return None
            case "rotate-secret":
                return self._rotate_secret(form.get("client_secret", ""), form.get("client_id"))
            case action if action in ACTIONS:
                return self._end(action, form.get("account", ""), form.get("client_id"))
            case _:
                return "action: expected one of the buttons"

    def _fail(self, form: dict[str, str]) -> str | None:
        failure, count = FAILURES.get(form.get("failure", "")), form.get("count", "1")
        if failure is None:
            return f"failure: expected one of {', '.join(FAILURES)}"
        if not re.fullmatch(r"[0-9]{1,3}", count, re.ASCII) or not 1 <= int(count) <= MOST_FAILURES:
            return f"count: expected a number from 1 to {MOST_FAILURES}"
        self._spotify.fail_next([failure.answer] * int(count), web=failure.web)
        return None

    def _rotate_secret(self, client_secret: str, client_id: str | None) -> str | None:
        if not re.fullmatch(SECRET_PATTERN, client_secret, re.ASCII):
            return "client_secret: expected letters, digits and hyphens"
        self._spotify.apps.set_secret(client_id, client_secret)
        return None

    def _end(self, action: str, account: str, client_id: str | None) -> str | None:
        if account not in self._spotify.accounts:
            return "account: expected one of the accounts"
        if action == "revoke":
            self._spotify.revoke(account, client_id=client_id)
        else:
            self._spotify.expire(account, client_id=client_id, refresh_tokens=action == "expire-refresh")
        return None
