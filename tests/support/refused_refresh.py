"""A refresh that fails."""

import pytest

from spotconn import SpotconnError, SpotifyAccounts, SpotifyUnavailable

SECRET = "secret-rt"
"""The refresh token that is sent."""
GRANT = {"access_token": "granted-at", "token_type": "Bearer", "expires_in": 3600}


async def failure(accounts: SpotifyAccounts) -> SpotconnError:
    """What a refresh raises: an error of the library, with nothing behind it."""
    async with accounts:
        with pytest.raises(SpotconnError) as raised:
            await accounts.refresh(SECRET, timeout=2)
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)
    assert SECRET not in str(raised.value)
    return raised.value


def passes(error: SpotconnError) -> bool:
    """Whether an error says: try later, the network is at fault."""
    return type(error) is SpotifyUnavailable and not error.answered
