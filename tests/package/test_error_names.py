"""Errors carry the names that the documentation has: logs, events, task queues and crash reports show them."""

import importlib
import pkgutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

import httpx
import pytest

import spotconn
from spotconn import ConnectFlow, ConnectionStore, SpotconnError, SpotifyAccounts, TokenManager, events
from spotconn.testing import Answer, FakeSpotify
from support.connections import connect
from support.consent import REDIRECT_URI, agree


def is_documented(error: BaseException) -> bool:
    """Whether the class is the one that its name means in `spotconn`."""
    return type(error) is getattr(spotconn, type(error).__name__, None)


def test_every_class_of_errors_is_public() -> None:
    """No module of the library derives a class of errors that callers cannot name."""
    for module in pkgutil.walk_packages(spotconn.__path__, "spotconn."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    waiting, private = [SpotconnError], list[str]()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("spotconn") and getattr(spotconn, kind.__name__, None) is not kind:
            private.append(f"{kind.__module__}.{kind.__qualname__}")
    assert private == []


@dataclass
class Scene:
    """A user whose token has ended, and what asks Spotify for him."""

    accounts: SpotifyAccounts
    tokens: TokenManager
    flow: ConnectFlow
    user: UUID
    callback: str
    seen: list[events.Event]


@pytest.fixture
async def scene(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> AsyncIterator[Scene]:
    await connect(store, spotify, user, ttl=-1)
    flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=())
    callback = await agree(await flow.start(user))
    seen: list[events.Event] = []
    async with TokenManager(store, accounts, refresh_timeout=1, lease=2, on_event=seen.append) as tokens:
        yield Scene(accounts, tokens, flow, user, callback, seen)


async def first_of_many(scene: Scene) -> None:
    """Raise what is the answer for the user of a pass."""
    async for _, answer in scene.tokens.get_valid_tokens([scene.user], throttle_timeout=0):
        if isinstance(answer, SpotconnError):
            raise answer


ANSWERS = {
    "503": Answer.unavailable(),
    "429": Answer.too_many_requests(),
    "429 with Retry-After": Answer.too_many_requests("60"),
    "invalid_client": Answer(status=400, json={"error": "invalid_client"}),
    "invalid_grant": Answer(status=400, json={"error": "invalid_grant"}),
    "invalid_request": Answer(status=400, json={"error": "invalid_request"}),
    "truncated": Answer.truncated(),
    "reset": Answer.reset(),
}
FIRST = {"429 with Retry-After", "invalid_client", "invalid_grant"}
"""Answers that `make test` gives to each call."""
CALLS: dict[str, Callable[[Scene], Awaitable[object]]] = {
    "refresh": lambda on: on.accounts.refresh("a-token", timeout=0.5),
    "exchange_code": lambda on: on.accounts.exchange_code(
        "a-code", redirect_uri=REDIRECT_URI, code_verifier="v", timeout=0.5
    ),
    "profile": lambda on: on.accounts.profile("a-token", timeout=0.5),
    "get_valid_token": lambda on: on.tokens.get_valid_token(on.user),
    "get_valid_tokens": first_of_many,
    "replace_rejected": lambda on: on.tokens.replace_rejected(on.user, "a-token"),
    "finish": lambda on: on.flow.finish(on.user, on.callback),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "answer",
    [pytest.param(each, id=name, marks=[] if name in FIRST else [pytest.mark.long]) for name, each in ANSWERS.items()],
)
async def test_every_error_about_spotify_has_a_documented_name(
    answer: Answer,
    call: Callable[[Scene], Awaitable[object]],
    scene: Scene,
    spotify: FakeSpotify,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever Spotify answers, the error is of a documented class, the second time too, and so is the event."""
    monkeypatch.setattr("spotconn._completion.TIMEOUT", 0.5)
    spotify.script(*[answer] * 1000)
    for _ in range(2):
        with pytest.raises(SpotconnError) as raised:
            await call(scene)
        assert is_documented(raised.value), type(raised.value)
    await scene.tokens.aclose()
    names = [event.error for event in scene.seen if isinstance(event, events.RefreshFailed)]
    assert all(hasattr(spotconn, name) for name in names)


@pytest.mark.parametrize("call", [name for name in CALLS if name != "finish"])
async def test_a_fault_of_the_network_has_a_documented_name(call: str, scene: Scene) -> None:
    """No connection, and a client that is closed, are errors of documented classes."""
    nowhere = "http://127.0.0.1:1"
    for http in (httpx.AsyncClient(trust_env=False), closed := httpx.AsyncClient()):
        if http is closed:
            await closed.aclose()
        accounts = SpotifyAccounts("demo-client", http=http, accounts_url=nowhere, api_url=nowhere)
        async with TokenManager(scene.tokens.store, accounts, refresh_timeout=0.5, lease=2) as tokens:
            there = Scene(accounts, tokens, scene.flow, scene.user, scene.callback, [])
            with pytest.raises(SpotconnError) as raised:
                await CALLS[call](there)
            assert is_documented(raised.value), type(raised.value)
        await http.aclose()
