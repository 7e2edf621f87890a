"""Collects everything that is emitted, and finds marked secrets in it."""

import copy
import pickle
import traceback
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Awaitable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import BaseModel

from spotconn import SpotconnError

TESTS = str(Path(__file__).parents[1])


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error with its causes and contexts, also suppressed ones, and the members of groups."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
        waiting += getattr(one, "exceptions", ())


def text_of(error: BaseException) -> str:
    """An error as a crash reporter shows it: texts, attributes, pickle, and the locals of every frame but a test's."""
    parts: list[str] = []
    for one in chain(error):
        parts += [str(one), repr(one), repr(one.args), repr(vars(one)), *getattr(one, "__notes__", ())]
        shown = traceback.TracebackException.from_exception(one, capture_locals=True)
        parts += shown.format_exception_only()
        for frame in shown.stack:
            if not frame.filename.startswith(TESTS):
                parts += [f"{frame.filename}:{frame.lineno} {frame.name} {frame.line}", repr(frame.locals)]
    return "\n".join([*parts, repr(_pickled(error))])


def _pickled(thing: object) -> bytes:
    try:
        return pickle.dumps(copy.copy(thing))
    except (TypeError, AttributeError, pickle.PicklingError):
        return b""


class LeakDetector:
    """What was emitted, and the secrets that must not be in it."""

    def __init__(self, *secrets: str) -> None:
        self.recorded: list[str] = []
        self.secrets = set(secrets)
        self.errors: list[str] = []

    async def fails(self, call: Awaitable[object]) -> None:
        """The call must fail with an error of ours."""
        with pytest.raises((SpotconnError, ValueError)) as raised:
            await call
        self.errors.append(type(raised.value).__name__)
        self.recorded.append(text_of(raised.value))

    def record(self, *things: object) -> None:
        """Values and objects as a log shows them, and objects as they pickle; a value with tokens pickles them."""
        for thing in things:
            self.recorded += [repr(thing), str(thing), "" if isinstance(thing, BaseModel) else repr(_pickled(thing))]

    def forms(self) -> set[str]:
        """The secrets as they are and as they travel."""
        found = set[str]()
        for secret in self.secrets:
            raw = secret.encode()
            found |= {secret, quote(secret, safe=""), b64encode(raw).decode(), urlsafe_b64encode(raw).decode()}
        return found

    def check(self, log: str) -> None:
        """Nothing that was collected may hold a secret."""
        said = log + "\n".join(self.recorded)
        assert len(said) > 1000, "nothing was collected"
        assert self.secrets
        leaked = [line[:900] for line in said.splitlines() if any(form in line for form in self.forms())]
        assert not leaked, "\n".join([f"{len(leaked)} lines hold a secret", *leaked])
