"""The callers of one process: each makes its call, and reports how it ended."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import httpx

from chaos.history import Call, digest
from chaos.plan import Action
from spotconn import ConnectFlow, SpotconnError, TokenManager

Emit = Callable[[dict[str, Any]], None]


@dataclass
class Service:
    """A manager, and what a user of it needs to connect.

    Attributes:
        url: of Spotify, below a path of this manager.
        served: the last token of each user.
    """

    number: int
    tokens: TokenManager
    flow: ConnectFlow
    url: str
    served: dict[int, str]


Ask = Callable[[Service, Call, dict[str, Any]], Coroutine[Any, Any, str | None]]


class Callers:
    """Makes the calls of a plan.

    Args:
        process: its name.
        users: by number.
        emit: takes events.
    """

    def __init__(
        self, process: str, services: list[Service], users: list[UUID], browser: httpx.AsyncClient, emit: Emit
    ) -> None:
        self._process = process
        self._services = services
        self._users = users
        self._browser = browser
        self._emit = emit
        self.running: dict[asyncio.Task[None], Call] = {}

    def begin(self, action: Action) -> None:
        """Begin a call of the plan."""
        if action.kind == "block":
            self._block(action.args["seconds"])
            return
        for _ in range(action.args.get("callers", 1)):
            self._begin(action.kind, action.args)

    def end(self) -> None:
        """Report what is still under way as calls that never ended."""
        for task, call in list(self.running.items()):
            call.hung, call.ended = True, time.time()
            self._report(call)
            call.hung = False
            task.cancel()

    def _begin(self, kind: str, args: dict[str, Any]) -> None:
        number: int = args["manager"]
        service = self._services[number]
        call = Call(self._process, service.number, args["user"], kind, time.time(), 0.0)
        asks: dict[str, Ask] = {
            "get": self._get,
            "get_burst": self._get,
            "get_cancelled": self._get,
            "get_while_handling": self._get_while_handling,
            "get_min_ttl": self._get_min_ttl,
            "replace_rejected": self._replace_rejected,
            "many": self._many,
            "status": self._status,
            "disconnect": self._disconnect,
            "reconnect": self._reconnect,
        }
        task = asyncio.create_task(self._run(asks[kind](service, call, args), call), name="caller")
        self.running[task] = call
        task.add_done_callback(lambda done: self._done(done, call))
        if "after" in args:
            asyncio.get_running_loop().call_later(args["after"], self._cancel, task, call)

    def _cancel(self, task: asyncio.Task[None], call: Call) -> None:
        if task.cancel():
            call.kind = "cancelled"

    def _done(self, task: asyncio.Task[None], call: Call) -> None:
        del self.running[task]
        # Cancelled before its first step, a caller reports nothing.
        if task.cancelled() and not call.ended:
            call.ended = time.time()
            call.closed = call.kind != "cancelled"
            self._report(call)

    async def _run(self, ask: Coroutine[Any, Any, str | None], call: Call) -> None:
        try:
            token = await ask
            call.result = None if token is None else digest(token)
            if token is not None:
                self._services[call.manager].served[call.user] = token
        except asyncio.CancelledError:
            call.closed = call.kind != "cancelled"
            raise
        except GeneratorExit:
            call.closed = True
            raise
        except SpotconnError as error:
            call.error, call.text = _public_name(error), str(error)
        except Exception as error:  # noqa: BLE001  the oracle judges it
            call.error, call.text = type(error).__name__, str(error)[:200]
        finally:
            call.ended = time.time()
            self._report(call)

    def _report(self, call: Call) -> None:
        self._emit({"event": "call", **asdict(call)})

    async def _get(self, service: Service, call: Call, _args: dict[str, Any]) -> str:
        return await service.tokens.get_valid_token(self._users[call.user])

    async def _get_while_handling(self, service: Service, call: Call, _args: dict[str, Any]) -> str:
        own = LookupError("not in the caller's own cache")
        try:
            raise own
        except LookupError as handled:
            trace = handled.__traceback__
            assert trace is not None
            try:
                return await service.tokens.get_valid_token(self._users[call.user])
            finally:
                untouched = handled.__traceback__ is trace and "own" in trace.tb_frame.f_locals
                call.disturbed = not untouched or handled.__context__ is not None

    async def _get_min_ttl(self, service: Service, call: Call, args: dict[str, Any]) -> str:
        return await service.tokens.get_valid_token(self._users[call.user], min_ttl=args["min_ttl"])

    async def _replace_rejected(self, service: Service, call: Call, args: dict[str, Any]) -> str | None:
        if (token := service.served.get(call.user)) is None:
            return None
        call.rejected = digest(token)
        if args["really"]:
            with suppress(httpx.HTTPError):
                await self._browser.post(f"{service.url}/reject", content=token)
        call.began = time.time()
        return await service.tokens.replace_rejected(self._users[call.user], token)

    async def _many(self, service: Service, call: Call, args: dict[str, Any]) -> None:
        answers: AsyncGenerator[tuple[UUID, str | SpotconnError], None]
        answers = service.tokens.get_valid_tokens(self._users, concurrency=args["concurrency"])
        async with aclosing(answers):
            async for user_id, answer in answers:
                one = Call(
                    self._process, service.number, self._users.index(user_id), "one_of_many", call.began, time.time()
                )
                if isinstance(answer, str):
                    one.result = digest(answer)
                else:
                    one.error, one.text = _public_name(answer), str(answer)
                self._report(one)
                if args["leave"]:
                    return

    async def _status(self, service: Service, call: Call, _args: dict[str, Any]) -> None:
        await service.tokens.status(self._users[call.user])

    async def _disconnect(self, service: Service, call: Call, _args: dict[str, Any]) -> None:
        await service.tokens.disconnect(self._users[call.user])

    async def _reconnect(self, service: Service, call: Call, _args: dict[str, Any]) -> None:
        user_id = self._users[call.user]
        url = await service.flow.start(user_id)
        form = dict(parse_qsl(urlsplit(url).query)) | {"account": f"account-{call.user}", "decision": "agree"}
        try:
            answer = await self._browser.post(url.partition("?")[0], data=form)
        except httpx.HTTPError:
            return
        await service.flow.finish(user_id, answer.headers["location"])

    def _block(self, seconds: float) -> None:
        """Keep the event loop from running, as a caller does that computes."""
        began = time.time()
        time.sleep(seconds)
        self._emit({"event": "stall", "process": self._process, "began": began, "ended": time.time()})


def _public_name(error: SpotconnError) -> str:
    """Return the name of the public class of an error."""
    return next(one.__name__ for one in type(error).__mro__ if one.__module__ == "spotconn.errors")
