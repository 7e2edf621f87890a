"""The errors of the library as problem details, and their description for FastAPI."""

import logging

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request

from spotconn import (
    ConfigurationError,
    ConnectFailed,
    DatabaseUnavailable,
    MissingScope,
    NotConnected,
    SpotconnError,
    SpotifyUnavailable,
    TryLater,
    UnknownUser,
)
from spotconn.testing._server import serve
from spotconn.web import PROBLEM_RESPONSES, problem_details

HUSH = "hush-hush"


@pytest.mark.parametrize(
    ("error", "status", "retry_after", "members"),
    [
        (NotConnected("no connection"), 409, None, {"detail": "no connection"}),
        (ConnectFailed("denied", "the user said no"), 409, None, {"reason": "denied"}),
        (MissingScope(["b"], ["a"]), 409, None, {"scope": "a b"}),
        (UnknownUser(HUSH), 409, None, {"type": "tag:spotconn,2026:unknown-user"}),
        (SpotifyUnavailable(HUSH, retry_after=6.1), 503, "7", {}),
        (DatabaseUnavailable(HUSH), 503, "5", {}),
        (TryLater(HUSH, retry_after=0.0), 429, "1", {}),
        (ConfigurationError(HUSH), 500, None, {}),
    ],
)
async def test_each_branch_has_its_answer(
    error: SpotconnError,
    status: int,
    retry_after: str | None,
    members: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Status, Retry-After rounded up, and a whole problem; the inside is in the log, once, and nowhere else."""
    app = FastAPI(responses=PROBLEM_RESPONSES)
    app.add_exception_handler(SpotconnError, problem_details)

    @app.get("/")
    async def failing() -> None:
        raise error

    async with serve(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        answer = await client.get("/")
        described = (await client.get("/openapi.json")).json()["paths"]["/"]["get"]["responses"]
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/problem+json", "no-store")
    assert members.items() <= answer.json().items()
    assert answer.json().keys() - members.keys() == {"type", "title", "status", "detail"} - members.keys()
    assert HUSH not in answer.text
    levels = {409: [], 500: [logging.CRITICAL]}.get(status, [logging.WARNING])
    assert [record.levelno for record in caplog.records if record.name == "spotconn.web"] == levels
    assert "application/problem+json" in described[str(status)]["content"]


async def test_what_is_not_of_the_library_stays_as_it_is() -> None:
    """The handler raises it again, for the handler of all else."""
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
    with pytest.raises(KeyError):
        await problem_details(request, KeyError("x"))
