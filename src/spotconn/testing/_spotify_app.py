"""The HTTP side of the simulated Spotify: consent page, token endpoint and profile."""

import asyncio
from html import escape
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from spotconn.testing._answers import Answer

if TYPE_CHECKING:
    from spotconn.testing._spotify import FakeSpotify

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 26rem; margin: 3rem auto; padding: 0 1rem }}
button {{ font: inherit; padding: .6rem 1.4rem; margin-right: .5rem }}
label {{ display: block; padding: .3rem 0 }}
</style>
<main><h1>{title}</h1>{main}</main></html>"""


def build_app(fake: "FakeSpotify") -> Starlette:
    """The routes of both hosts: accounts.spotify.com and api.spotify.com."""

    async def consent(request: Request) -> Response:
        query = dict(request.query_params)
        if fault := fake.authorization_fault(query):
            return HTMLResponse(PAGE.format(title="Error", main=f"<p>{escape(fault)}</p>"), 400)
        return HTMLResponse(_consent_page(fake, query))

    async def decision(request: Request) -> Response:
        form = _strings(await request.form())
        if fault := fake.authorization_fault(form):
            return HTMLResponse(PAGE.format(title="Error", main=f"<p>{escape(fault)}</p>"), 400)
        agreed = form.get("decision") == "agree" and form.get("account") in fake.accounts
        answer = {"code": fake.new_code(form, form["account"])} if agreed else {"error": "access_denied"}
        if "state" in form:
            answer["state"] = form["state"]
        joint = "&" if "?" in form["redirect_uri"] else "?"
        return RedirectResponse(f"{form['redirect_uri']}{joint}{urlencode(answer)}", 302)

    async def token(request: Request) -> Response:
        form = _strings(await request.form())
        answer = await fake.token_answer(form, request.headers.get("authorization"))
        if isinstance(answer, Answer):
            return Scripted(answer)
        await asyncio.sleep(fake.latency())
        status, body = answer
        return JSONResponse(body, status)

    async def me(request: Request) -> Response:
        answer = fake.profile(request.headers.get("authorization"))
        if isinstance(answer, str):
            return PlainTextResponse(answer, 403)
        status, body = answer
        return JSONResponse(body, status)

    return Starlette(
        routes=[
            Route("/authorize", consent, methods=["GET"]),
            Route("/authorize", decision, methods=["POST"]),
            Route("/api/token", token, methods=["POST"]),
            Route("/v1/me", me, methods=["GET"]),
        ]
    )


class Scripted(Response):
    """An answer that a test has scripted."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.content, answer.status, dict(answer.headers))
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or a part of it, or nothing."""
        await asyncio.sleep(self._answer.delay)
        if self._answer.hang:
            while (await receive())["type"] != "http.disconnect":
                pass
        elif self._answer.cut:
            # A body shorter than announced: the server can only close the connection.
            headers = [(b"content-length", str(len(self.body) + 100).encode())]
            await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
        else:
            await super().__call__(scope, receive, send)


def _strings(form: FormData) -> dict[str, str]:
    return {name: value for name, value in form.items() if isinstance(value, str)}


def _consent_page(fake: "FakeSpotify", query: dict[str, str]) -> str:
    hidden = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">' for name, value in query.items()
    )
    choices = "".join(
        f'<label><input type="radio" name="account" value="{escape(account.spotify_user_id)}" required'
        f"{' checked' if place == 0 else ''}> {escape(account.display_name or account.spotify_user_id)}</label>"
        for place, account in enumerate(fake.accounts.values())
    )
    scopes = escape(query.get("scope") or "no more than your public profile")
    main = (
        f'<p>The app asks for: {scopes}.</p><form method="post" action="/authorize">{hidden}'
        f"<fieldset><legend>Your account</legend>{choices}</fieldset>"
        '<p><button name="decision" value="agree">Agree</button>'
        '<button name="decision" value="cancel" formnovalidate>Cancel</button></p></form>'
    )
    return PAGE.format(title="Simulated Spotify", main=main)
