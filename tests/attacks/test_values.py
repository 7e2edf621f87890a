"""An endpoint returns what the library gave it, and a handler sends the errors of a refused grant: to the attacker."""

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from spotconn import ConnectFlow, Connection, Outcome, RefreshTurn, StoredTexts, TokenGrant
from spotconn._tokens.stored_token import StoredToken
from spotconn.models import StoredAccessToken
from support.consent import agree

USER = UUID("5b0c9d1e-0f0a-4a52-8a55-3c2f1d6e7a88")
END = datetime(2026, 11, 24, 12, tzinfo=UTC)
GRANT = TokenGrant(access_token="SECRET-a", refresh_token="SECRET-r", expires_at=END, scope=frozenset({"a"}))
TEXTS = StoredTexts("SECRET-a", "SECRET-r")
CONNECTION = Connection(
    id=USER,
    user_id=USER,
    spotify_user_id="alice",
    access_token="SECRET-a",
    refresh_token="SECRET-r",
    expires_at=END,
    remaining=60.0,
    connected_at=END,
    display_name=None,
    email=None,
    scope=None,
    texts=TEXTS,
)
TURN = RefreshTurn(outcome=Outcome.SUPERSEDED, user_id=USER, connection=CONNECTION)
VALUES: list[BaseModel] = [GRANT, TEXTS, CONNECTION, TURN]


@dataclass
class Page:
    """What an application puts a value into."""

    value: Any


class Body(BaseModel):
    """A model of an application that holds a grant."""

    grant: TokenGrant


def _plain(inner: object) -> object:
    return dict(inner) if isinstance(inner, BaseModel) else str(inner)


DUMPS: list[Callable[[BaseModel], object]] = [
    lambda value: value.model_dump(),
    lambda value: value.model_dump(round_trip=True, include={"access_token", "connection", "texts"}),
    lambda value: value.model_dump_json(),
    lambda value: TypeAdapter(type(value)).dump_json(value),
    lambda value: TypeAdapter(list[Any]).dump_python([value]),
    lambda value: TypeAdapter(BaseModel).dump_json(value, serialize_as_any=True),
    lambda value: TypeAdapter(Page).dump_json(Page(value)),
    jsonable_encoder,
    lambda value: jsonable_encoder(Page([value])),
    lambda value: jsonable_encoder(asdict(Page(value))),
    lambda value: dict(iter(value)),
    lambda value: json.dumps(asdict(Page(value)), default=_plain),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_no_dump_holds_a_token(value: BaseModel) -> None:
    """Whichever way pydantic, FastAPI, dataclasses or `dict` write a value out, alone or within another."""
    for dump in DUMPS:
        assert "SECRET" not in str(dump(value))
    described = type(value).model_json_schema(mode="serialization")
    for schema in (described, *described.get("$defs", {}).values()):
        assert not {"access_token", "refresh_token", "texts"} & set(schema.get("properties", ()))


@pytest.mark.parametrize(
    "value", [StoredAccessToken("SECRET-a", b"d", 1.0, None), StoredToken("SECRET-a", b"d", 1.0, None)]
)
def test_no_serializer_knows_the_tokens_of_the_inside(value: object) -> None:
    """They are no dataclasses, so that no serializer writes them out unasked."""
    assert not is_dataclass(value)
    assert "SECRET" not in f"{value!r}{TypeAdapter(Page).dump_python(Page(None))}"
    with pytest.raises(TypeError):
        json.dumps(value)


def test_the_way_out_is_named_and_leads_back() -> None:
    """A grant is handed over as JSON by the one method that says so; copies and pickles are the same value."""
    handed_over = json.dumps(GRANT.dump_with_tokens())
    assert "SECRET-r" in handed_over
    assert TokenGrant.model_validate(json.loads(handed_over)) == GRANT
    assert TokenGrant.model_validate_json(handed_over) == GRANT
    for value in VALUES:
        for again in (copy.copy(value), copy.deepcopy(value), value.model_copy(), pickle.loads(pickle.dumps(value))):
            assert again == value
            assert hash(again) == hash(value)
            assert vars(again) == vars(value)


@pytest.mark.parametrize("annotated", [True, False])
async def test_an_endpoint_that_returns_the_connection(flow: ConnectFlow, user: UUID, *, annotated: bool) -> None:
    """`return await flow.finish(…)`, the natural line, sends no token to the browser, and OpenAPI promises none."""
    app = FastAPI()

    async def callback(request: Request) -> Any:
        return await flow.finish(user, str(request.url))

    app.add_api_route("/callback", callback, response_model=Connection if annotated else None)
    url = await agree(await flow.start(user), "alice")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://service") as browser:
        answer = await browser.get("/callback?" + url.partition("?")[2])
        described = await browser.get("/openapi.json")
    stored = await flow._store.get(user)
    assert (answer.status_code, answer.json()["spotify_user_id"]) == (200, "alice")
    for text in (answer.text, described.text):
        assert stored.access_token not in text
        assert stored.refresh_token not in text
        assert '"refresh_token"' not in text


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: TokenGrant(access_token="SECRET\n", expires_at=END), "access_token"),
    (lambda: TokenGrant.model_validate({"access_token": "SECRET-a", "refresh_token": "SECRET b"}), "refresh_token"),
    (lambda: TokenGrant.model_validate({"acces_token": "SECRET-a"}), "acces_token"),
    (lambda: TokenGrant.model_validate_json('{"access_token": "SECRET b"}'), "expires_at"),
    (lambda: TokenGrant.model_validate_json('{"access_token": "SECRET'), "Invalid JSON"),
    (lambda: TokenGrant.model_validate_strings({"access_token": "SECRET b"}), "access_token"),
    (lambda: TokenGrant.model_validate("SECRET"), "model_type"),
    (lambda: TypeAdapter(list[TokenGrant]).validate_python([{"access_token": "SECRET b"}]), "access_token"),
    (lambda: Body.model_validate({"grant": {"access_token": "SECRET b"}}), "grant.access_token"),
    (lambda: Body.model_validate_json('{"grant": {"access_token": "SECRET b"}}'), "grant.access_token"),
    (lambda: RefreshTurn.model_validate({"outcome": "busy", "user_id": USER, "connection": {"id": "SECRET"}}), "id"),
    (lambda: RefreshTurn(outcome=Outcome.GONE, user_id=USER, connection=CONNECTION), "exactly when"),
    (lambda: StoredTexts("SECRET", b"\xffSECRET"), "refresh_token"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
]


def _unpickled(pickled: bytes) -> object:
    """Return an error that was pickled, where this pydantic can read one with a type or a text of its own."""
    plain = InitErrorDetails(type=PydanticCustomError("value_error", "text"), input=None)
    try:
        pickle.loads(pickle.dumps(ValidationError.from_exception_data("", [plain])))
    except TypeError:
        return None
    return pickle.loads(pickled)


@pytest.mark.parametrize(("refused", "named"), REFUSED)
def test_the_error_of_a_refused_value_holds_no_input(refused: Callable[[], object], named: str) -> None:
    """Neither text nor `errors()`, JSON, pickle, cause or context; field and reason are there."""
    with pytest.raises(ValidationError) as raised:
        refused()
    error = raised.value
    pickled = pickle.dumps(error)
    emitted = f"{error}{error!r}{error.errors()}{error.json()}{pickled!r}{_unpickled(pickled)}"
    assert "SECRET" not in emitted
    assert named in str(error)
    assert all(line["type"] and line["msg"] for line in error.errors())
    assert (error.__cause__, error.__context__) == (None, None)


async def test_a_handler_that_sends_the_errors_of_a_request() -> None:
    """FastAPI's own answer and one that sends `errors()` show no part of a grant in a body; `body` is the handler's."""
    app = FastAPI()

    @app.post("/grants")
    async def take(grant: TokenGrant) -> TokenGrant:
        return grant

    @app.post("/bodies")
    async def take_within(body: Body) -> None:
        pass

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://service") as client:
        wrong = {"access_token": "SECRET b", "refresh_token": "SECRET-r"}
        own = await client.post("/grants", json=wrong)
        within = await client.post("/bodies", json={"grant": wrong})

        async def sends(request: Request, error: Exception) -> JSONResponse:
            assert isinstance(error, RequestValidationError)
            return JSONResponse(jsonable_encoder(error.errors()), 418)

        app.add_exception_handler(RequestValidationError, sends)
        app.middleware_stack = None
        handled = await client.post("/grants", json=wrong)
        taken = await client.post("/grants", json=GRANT.dump_with_tokens())
    assert [each.status_code for each in (own, within, handled, taken)] == [422, 422, 418, 200]
    for answer in (own, within, handled, taken):
        assert "SECRET" not in answer.text
    assert "access_token" in own.text
