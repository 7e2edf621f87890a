"""The exception tree: its shape, what a caller may decide from it, and that it travels between processes."""

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from importlib import import_module
from typing import Any

import pytest

from spotconn import errors
from spotconn.errors import (
    AskUser,
    CallEngineer,
    ConfigurationError,
    ConnectFailed,
    DatabaseUnavailable,
    DecryptionError,
    MissingScope,
    NotConnected,
    OtherApp,
    ReauthorizationRequired,
    RefreshInProgress,
    RowSecurityError,
    SchemaMismatch,
    SpotconnError,
    SpotifyUnavailable,
    StatementRefused,
    TryLater,
    UnknownUser,
)

SINCE = datetime(2026, 11, 24, 2, 40, tzinfo=UTC)
EVERY: list[SpotconnError] = [
    NotConnected("no connection"),
    ReauthorizationRequired("revoked", SINCE),
    UnknownUser("user_id: no such user"),
    MissingScope(["user-top-read", "user-read-email"], ["streaming"]),
    ConnectFailed("state_expired", "start again"),
    TryLater("later", retry_after=1.5),
    SpotifyUnavailable("503", retry_after=2, answered=False),
    RefreshInProgress("busy", retry_after=0.5),
    DatabaseUnavailable("away", retry_after=3, answered=True, locked=True, sqlstate="55P03"),
    ConfigurationError("a setting is missing"),
    OtherApp("app-b", ["app-a"]),
    SchemaMismatch("old"),
    StatementRefused("23514", "a constraint"),
    RowSecurityError("bypassed", hidden=True),
    DecryptionError("unknown key"),
]
BRANCHES = {AskUser: False, TryLater: True, CallEngineer: False}


def _classes() -> set[type[SpotconnError]]:
    return {value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, SpotconnError)}


def _drawn() -> dict[str, str]:
    """Each class of the drawing in the docstring, with the one above it."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ((?:[│├└─ ]{4})*)([A-Z]\w+)", line):
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            if depth:
                parents[found[2]] = path[depth - 1]
    return parents


def test_the_tree_is_the_one_drawn() -> None:
    """The drawing in the docstring names every class under its real parent, and no other."""
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in _classes() - {SpotconnError}}
    assert _drawn() == real


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_every_error_is_in_one_branch_and_says_whether_to_retry(error: SpotconnError) -> None:
    """An error belongs to exactly one of the three branches, and only the middle one is worth a retry."""
    (branch,) = (branch for branch in BRANCHES if isinstance(error, branch))
    assert error.retryable is BRANCHES[branch]


def test_every_leaf_is_tried() -> None:
    """The samples of these tests cover every class that can be raised."""
    assert {type(error) for error in EVERY} >= _classes() - {SpotconnError, AskUser, CallEngineer}


def pickled(error: SpotconnError) -> SpotconnError:
    twin: SpotconnError = pickle.loads(pickle.dumps(error))
    return twin


def from_args(error: SpotconnError) -> SpotconnError:
    return type(error)(*error.args)


def by_celery(error: SpotconnError) -> SpotconnError:
    """As a caller of Celery gets it from a result backend, whose serializer is JSON unless told otherwise."""
    celery: Any = import_module("celery")  # it has no types
    backend = celery.Celery(backend="cache+memory://", set_as_current=False).backend
    stored = backend.encode(backend.prepare_exception(error))
    twin: SpotconnError = backend.exception_to_python(backend.decode(stored))
    return twin


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("again", [pickled, copy.copy, copy.deepcopy, from_args, by_celery])
def test_an_error_survives_a_copy(error: SpotconnError, again: Callable[[SpotconnError], SpotconnError]) -> None:
    """Pickling, copying and JSON keep the class, the text and every attribute."""
    twin = again(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_the_data_is_on_the_error() -> None:
    """What a caller decides from is an attribute, never to be read out of the text."""
    missing = MissingScope(["user-top-read", "streaming"], ["user-read-email"])
    assert missing.missing == {"user-top-read", "streaming"}
    assert missing.scopes == {"user-top-read", "streaming", "user-read-email"}
    assert str(missing) == (
        "not granted: streaming user-top-read; connect again and ask for streaming user-read-email user-top-read"
    )
    assert (ReauthorizationRequired("expired", SINCE).reason, TryLater("later").retry_after) == ("expired", None)
    assert (SpotifyUnavailable("429").answered, ConnectFailed("denied", "no").reason) == (True, "denied")


def test_what_to_ask_for_holds_scopes_alone() -> None:
    """What another writer has stored beside the granted scopes is neither asked for nor shown."""
    missing = MissingScope(["a"], ["b", "", "\x1b[2J", "b\n", "caf\u00e9", '"c"', "d" * 65])
    assert missing.scopes == {"a", "b"}
    assert str(missing) == "not granted: a; connect again and ask for a b"


def test_the_time_in_the_text_is_utc() -> None:
    """A moment given in another zone is told in UTC, as the text says."""
    since = SINCE.astimezone(timezone(timedelta(hours=5)))
    assert "2026-11-24 02:40 UTC" in str(ReauthorizationRequired("revoked", since))
