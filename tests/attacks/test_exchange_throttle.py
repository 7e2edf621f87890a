"""Codes that somebody made up bring a 429."""

import pytest

from spotconn import SpotifyAccounts, SpotifyUnavailable
from spotconn.testing import Answer, FakeSpotify


async def test_a_429_for_codes_stops_no_refresh(accounts: SpotifyAccounts, spotify: FakeSpotify) -> None:
    """Exchanges wait for hours, refreshes go on; and a 429 for a refresh does not keep `finish` from trying."""
    spotify.add_account("alice")
    token = spotify.authorize("alice").refresh_token or ""
    spotify.script(Answer.too_many_requests("14000"))
    for _ in range(2):
        with pytest.raises(SpotifyUnavailable, match=r"429|asked this app to wait"):
            await accounts.exchange_code("made-up", redirect_uri="https://a.example/", code_verifier="v" * 43)
    assert spotify.token_calls == 1
    grant = await accounts.refresh(token)
    assert spotify.accepts(grant.access_token)
    assert spotify.token_calls == 2
