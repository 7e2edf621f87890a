"""One request to the Web API, with what may go wrong told in the errors of spotconn."""

from contextlib import suppress
from typing import Any

import httpx

from spotconn import SpotifyAuth, SpotifyUnavailable

NO_CONTENT = 204


async def get_json(http: httpx.AsyncClient, auth: SpotifyAuth, path: str, **query: int | str) -> Any:
    """The JSON of an answer; None of one without content (204).

    Raises:
        SpotconnError: there is no token for it, or Spotify gave no usable answer to it.
    """
    try:
        answer = await http.get(path, params=query, auth=auth)
    except httpx.RequestError as error:
        failure = SpotifyUnavailable(f"no answer from Spotify: {type(error).__name__}", answered=False)
    else:
        if answer.status_code == NO_CONTENT:
            return None
        if answer.is_success:
            with suppress(ValueError):
                return answer.json()
        seconds = answer.headers.get("Retry-After", "")
        failure = SpotifyUnavailable(
            f"Spotify answered with status {answer.status_code}{' and no JSON' if answer.is_success else ''}",
            retry_after=float(seconds) if seconds.isdecimal() else None,
        )
    # Not raised from the error itself, which holds the request and with it the token.
    raise failure
