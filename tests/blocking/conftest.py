"""What the tests of BlockingTokens work with."""

from collections.abc import Iterator
from typing import Any

import pytest

from spotconn.blocking import BlockingTokens
from spotconn.testing import FakeSpotify
from support.blocking_harness import Harness, Make
from support.consent import REDIRECT_URI, SCOPES
from support.database import Database
from support.loops import loop_thread


@pytest.fixture
def harness(prepared: Database, spotify: FakeSpotify) -> Iterator[Harness]:
    """The servers."""
    with loop_thread() as loop:
        serving = spotify.serve()
        yield Harness(loop, prepared, spotify, loop.run(serving.__aenter__()))
        loop.run(serving.__aexit__(None, None, None))


@pytest.fixture
def make(harness: Harness) -> Iterator[Make]:
    """Make BlockingTokens on the servers, closed at the end."""
    made: list[BlockingTokens] = []

    def one(opened: Any = harness.open) -> BlockingTokens:
        made.append(BlockingTokens(opened, redirect_uri=REDIRECT_URI, scopes=SCOPES))
        return made[-1]

    yield one
    for tokens in made:
        tokens.close()


@pytest.fixture
def tokens(make: Make) -> BlockingTokens:
    """One of them."""
    return make()
