"""The HTTP side of the simulated Spotify: consent page, token endpoint and Web API."""

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from spotconn.testing._answers import Answer
from spotconn.testing._control import Control
from spotconn.testing._forms import of_another_site, read_form
from spotconn.testing._scripted import Scripted
from spotconn.testing._simulation import Simulation
from spotconn.testing._spotify_pages import OTHER_SITE, apps_page, consent_page, error_page
from spotconn.testing._spotify_web import WebApi


def build_app(spotify: Simulation) -> Starlette:
    """Build the app with the control page and the routes of the accounts service, the Web API and the page of apps."""
    endpoints, control = _Endpoints(spotify), Control(spotify)
    return Starlette(
        routes=[
            Route("/", control.show, methods=["GET"]),
            Route("/", control.act, methods=["POST"]),
            Route("/authorize", endpoints.consent, methods=["GET"]),
            Route("/authorize", endpoints.decide, methods=["POST"]),
            Route("/api/token", endpoints.token, methods=["POST"]),
            Route("/account/apps", endpoints.apps, methods=["GET"]),
            Route("/account/apps", endpoints.remove_access, methods=["POST"]),
            Route("/v1/{path:path}", WebApi(spotify)),
        ]
    )


class _Endpoints:
    def __init__(self, spotify: Simulation) -> None:
        self._spotify = spotify

    async def consent(self, request: Request) -> Response:
        query = dict(request.query_params)
        if fault := self._spotify.authorization_fault(query):
            return HTMLResponse(error_page(fault), 400)
        return HTMLResponse(consent_page(query, list(self._spotify.accounts.values())))

    async def decide(self, request: Request) -> Response:
        if of_another_site(request):
            return HTMLResponse(error_page(OTHER_SITE), 403)
        # A program may send the request as it stands in the URL, and the decision alone as a form.
        form = dict(request.query_params) | await read_form(request)
        if fault := self._spotify.authorization_fault(form):
            return HTMLResponse(error_page(fault), 400)
        agreed = form.get("decision") == "agree" and form.get("account") in self._spotify.accounts
        return RedirectResponse(self._spotify.callback(form, form["account"] if agreed else None), 302)

    async def token(self, request: Request) -> Response:
        form = await read_form(request)
        answer = await self._spotify.token_answer(form, request.headers.get("authorization"))
        if isinstance(answer, Answer):
            return Scripted(answer)
        await asyncio.sleep(self._spotify.latency())
        status, body = answer
        return JSONResponse(body, status)

    async def apps(self, _request: Request) -> Response:
        return HTMLResponse(apps_page(self._spotify.consents_by_app(), name_apps=len(self._spotify.apps) > 1))

    async def remove_access(self, request: Request) -> Response:
        if of_another_site(request):
            return HTMLResponse(error_page(OTHER_SITE), 403)
        form = await read_form(request)
        client_id = form.get("client_id")
        if client_id is None or client_id in self._spotify.apps:
            self._spotify.revoke(form.get("account", ""), client_id=client_id)
        return RedirectResponse("/account/apps", 303)
