"""A running service with the routes, for its strangers."""

from collections.abc import AsyncIterator

import pytest

from spotconn import ConnectFlow, ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.web_service import FRONT_END, WebService, web_service


@pytest.fixture
async def service(
    store: ConnectionStore, accounts: SpotifyAccounts, flow: ConnectFlow, spotify: FakeSpotify
) -> AsyncIterator[WebService]:
    """A service that hands out tokens, with a front end of another origin."""
    async with (
        TokenManager(store, accounts) as tokens,
        web_service(tokens, flow, spotify, token=True, front_end=FRONT_END, after=f"{FRONT_END}/me") as service,
    ):
        yield service
