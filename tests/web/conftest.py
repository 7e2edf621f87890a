"""A running service with the routes."""

from collections.abc import AsyncIterator

import pytest

from spotconn import ConnectFlow, ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.web_service import WebService, web_service


@pytest.fixture
async def service(
    store: ConnectionStore, accounts: SpotifyAccounts, flow: ConnectFlow, spotify: FakeSpotify
) -> AsyncIterator[WebService]:
    """On the database and the Spotify of the test; browsers go to /me afterwards."""
    async with TokenManager(store, accounts) as tokens, web_service(tokens, flow, spotify, token=True) as service:
        yield service
