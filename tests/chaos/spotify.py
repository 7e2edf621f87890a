"""A FakeSpotify that can be broken for a while, and that records who asked what and what was granted."""

import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from chaos.history import History, Request, Token, digest
from spotconn.models import TokenGrant
from spotconn.testing import Answer, FakeSpotify

FOREIGN_TTL = 300
"""Seconds: longer than any end that another writer leaves in the row."""

MOST_UNDER_WAY = 30

_ANSWERS = {
    "unavailable": Answer.unavailable(),
    "limited": Answer.too_many_requests("1"),
    "hang": Answer.black_hole(),
    "refused": Answer(status=400, json={"error": "invalid_grant", "error_description": "Refresh token revoked"}),
    "cut": Answer(cut=True, body=b'{"access'),
    "garbage": Answer.truncated(),
}
_request: ContextVar[Request] = ContextVar("request")


def account_of(user: int) -> str:
    """Return the account of a user; no other user has it."""
    return f"account-{user}"


class ChaosSpotify(FakeSpotify):
    """Strictly rotating; each manager asks it below a path of its own, `/owner/<process>/<manager>`.

    Attributes:
        mode: how refreshes are answered now; "" as Spotify does.
        delay: seconds, in the modes "slow" (before Spotify acts) and "late" (after).
        lose: answers still to be lost after Spotify has acted.
        lasting: users whose next access tokens live for long.
    """

    def __init__(self, history: History, *, ttls: Sequence[int], latencies: Sequence[float]) -> None:
        super().__init__(rotation=True)
        self._history = history
        self._ttls: Iterator[int] = itertools.cycle(ttls)
        self._latencies: Iterator[float] = itertools.cycle(latencies)
        self._changes = itertools.count(1)
        self._change = 0
        self.mode = ""
        self.delay = 0.0
        self.lose = 0
        self.lasting: set[int] = set()
        for user in range(history.users):
            self.add_account(account_of(user))

    def break_down(self, mode: str, delay: float) -> int:
        """Enter a mode, and return the number of this change for `heal`."""
        self.mode, self.delay, self._change = mode, delay, next(self._changes)
        return self._change

    def heal(self, change: int | None = None) -> None:
        """End a mode, unless another one has begun since."""
        if change in {None, self._change}:
            self.mode = ""

    def authorize_elsewhere(self, user: int, ttl: int = FOREIGN_TTL) -> TokenGrant:
        """Return the tokens of another writer."""
        self._tokens._token_ttl = self._token_ttl = ttl
        grant = self.authorize(account_of(user))
        self._note(user, grant.access_token)
        return grant

    async def asked(self, *, user: int | None = None, process: str | None = None, seconds: float) -> None:
        """Wait until a refresh of a user, or by a process, is under way, but not for longer than `seconds`."""
        deadline = time.time() + seconds
        while time.time() < deadline:
            for request in self._history.requests[-MOST_UNDER_WAY:]:
                if request.ended is None and (request.user == user or request.process == process):
                    return
            await asyncio.sleep(0.01)

    async def granted(self, user: int, since: float, seconds: float) -> Request | None:
        """Wait for a refresh of a user that was granted and answered, but not for longer than `seconds`."""
        deadline = time.time() + seconds
        while time.time() < deadline:
            for request in self._history.requests[-MOST_UNDER_WAY:]:
                if request.user == user and request.began >= since and request.granted and request.ended:
                    return request
            await asyncio.sleep(0.01)
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/owner/"):
            await super().__call__(scope, receive, send)
            return
        _, _, process, manager, rest = scope["path"].split("/", 4)
        body = await _body_of(receive)
        if rest == "reject":
            await self._reject(body.decode(), send)
            return
        request = Request(f"{process}/{manager}", "", time.time())
        _request.set(request)
        left = asyncio.Event()
        watcher = asyncio.create_task(_watch(receive, request, left))
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            for message in messages:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                request.ended = request.ended or time.time()
            await send(message)

        try:
            await super().__call__({**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}, replay, answer)
        finally:
            request.ended = request.ended or time.time()
            watcher.cancel()

    async def token_answer(self, form: Mapping[str, str], authorization: str | None) -> Any:
        if form.get("grant_type") != "refresh_token":
            return await super().token_answer(form, authorization)
        request, mode, delay = _request.get(), self.mode, self.delay
        request.token = digest(form.get("refresh_token", ""))
        if (consent := self._tokens.refresh.get(form.get("refresh_token", ""))) is not None:
            request.user = _user_of(consent.account.spotify_user_id)
        self._history.requests.append(request)
        await asyncio.sleep(next(self._latencies) + (delay if mode == "slow" else 0.0))
        if mode in _ANSWERS:
            request.outcome = mode
            return _ANSWERS[mode]
        answer = await super().token_answer(form, authorization)
        if request.granted and self.lose:
            self.lose -= 1
            request.lost = True
            return Answer(cut=True, body=b'{"access')
        if mode == "late":
            await asyncio.sleep(delay)
        return answer

    def decide(self, form: Mapping[str, str], authorization: str | None) -> tuple[int, dict[str, Any]]:
        self._tokens._token_ttl = next(self._ttls)
        if form.get("grant_type") == "refresh_token" and _request.get().user in self.lasting:
            self._tokens._token_ttl = FOREIGN_TTL
        status, body = super().decide(form, authorization)
        user = -1
        if "access_token" in body:
            user = _user_of(self._tokens.access[body["access_token"]][0].account.spotify_user_id)
            self._note(user, body["access_token"])
        if form.get("grant_type") == "refresh_token":
            request = _request.get()
            request.outcome = "granted" if status == 200 else str(body["error"])
            if status == 200:
                request.user, request.granted = user, digest(body["refresh_token"])
                request.access = digest(body["access_token"])
            elif body["error"] == "invalid_grant":
                request.outcome = "refused"
        return status, body

    def _note(self, user: int, access_token: str) -> None:
        now = time.time()
        self._history.tokens[digest(access_token)] = Token(user, now, now + self._tokens._token_ttl)

    async def _reject(self, access_token: str, send: Send) -> None:
        self.reject_access_token(access_token)
        if (token := self._history.tokens.get(digest(access_token))) is not None:
            token.refused_from = token.refused_from or time.time()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({}).encode()})


async def _body_of(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


async def _watch(receive: Receive, request: Request, left: asyncio.Event) -> None:
    """Wait until the client has left, or has its answer. One that leaves before gets none, though Spotify may act."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if request.ended is None:
        request.ended, request.left, request.lost = time.time(), not request.lost, True
    left.set()


def _user_of(account: str) -> int:
    return int(account.rpartition("-")[2])
