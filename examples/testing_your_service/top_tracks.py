"""A service to be tested: what a user listens to most, as a sentence for a page."""

from uuid import UUID

import httpx

from spotconn import AskUser, TokenManager, TryLater


async def top_tracks(tokens: TokenManager, user_id: UUID) -> str:
    """Return the three tracks that a user listens to most, or a sentence why there are none."""
    auth, url = tokens.auth(user_id), tokens.accounts.api_url
    try:
        async with httpx.AsyncClient(auth=auth, base_url=url) as spotify:
            answer = await spotify.get("/v1/me/top/tracks", params={"limit": 3})
    except AskUser:
        return "Please connect Spotify again."
    except TryLater:
        return "Spotify cannot be asked just now. Please come back later."
    return " / ".join(track["name"] for track in answer.raise_for_status().json()["items"])
