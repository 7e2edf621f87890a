"""The HTTP side of the simulated Spotify: consent page, token endpoint and Web API."""

import asyncio
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from spotconn.testing._answers import Answer
from spotconn.testing._simulation import Simulation
from spotconn.testing._spotify_pages import apps_page, consent_page, error_page
from spotconn.testing._spotify_web import web_routes


def build_app(spotify: Simulation) -> Starlette:
    """Build the app with the routes of accounts.spotify.com, api.spotify.com and www.spotify.com/account/apps."""
    endpoints = _Endpoints(spotify)
    return Starlette(
        routes=[
            Route("/authorize", endpoints.consent, methods=["GET"]),
            Route("/authorize", endpoints.decide, methods=["POST"]),
            Route("/api/token", endpoints.token, methods=["POST"]),
            Route("/account/apps", endpoints.apps, methods=["GET"]),
            Route("/account/apps", endpoints.remove_access, methods=["POST"]),
            *web_routes(spotify),
        ]
    )


class _Endpoints:
    def __init__(self, spotify: Simulation) -> None:
        self._spotify = spotify

    async def consent(self, request: Request) -> Response:
        query = dict(request.query_params)
        if fault := self._spotify.authorization_fault(query):
            return HTMLResponse(error_page(fault), 400)
        return HTMLResponse(consent_page(query, self._spotify.accounts.values()))

    async def decide(self, request: Request) -> Response:
        form = _strings(await request.form())
        if fault := self._spotify.authorization_fault(form):
            return HTMLResponse(error_page(fault), 400)
        agreed = form.get("decision") == "agree" and form.get("account") in self._spotify.accounts
        answer = {"code": self._spotify.new_code(form, form["account"])} if agreed else {"error": "access_denied"}
        if "state" in form:
            answer["state"] = form["state"]
        joint = "&" if "?" in form["redirect_uri"] else "?"
        return RedirectResponse(f"{form['redirect_uri']}{joint}{urlencode(answer)}", 302)

    async def token(self, request: Request) -> Response:
        form = _strings(await request.form())
        answer = await self._spotify.token_answer(form, request.headers.get("authorization"))
        if isinstance(answer, Answer):
            return Scripted(answer)
        await asyncio.sleep(self._spotify.latency())
        status, body = answer
        return JSONResponse(body, status)

    async def apps(self, _request: Request) -> Response:
        spotify = self._spotify
        granted = [
            (account, client_id)
            for account in spotify.accounts.values()
            for client_id in spotify.apps
            if spotify.consents(account.spotify_user_id, client_id=client_id)
        ]
        return HTMLResponse(apps_page(granted, name_apps=len(spotify.apps) > 1))

    async def remove_access(self, request: Request) -> Response:
        form = _strings(await request.form())
        client_id = form.get("client_id")
        if client_id is None or client_id in self._spotify.apps:
            self._spotify.revoke(form.get("account", ""), client_id=client_id)
        return RedirectResponse("/account/apps", 303)


class Scripted(Response):
    """An answer that a test has scripted."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.content, answer.status, dict(answer.headers))
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, a part of it, or nothing."""
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
