# What the project uses of spotipy, which has no types.
from typing import Any, Protocol

import requests

class SpotifyException(Exception): ...

class _AuthManager(Protocol):
    def get_access_token(self, *, as_dict: bool) -> str: ...

class Spotify:
    prefix: str
    def __init__(
        self,
        *,
        auth_manager: _AuthManager | None = None,
        requests_session: requests.Session | bool = True,
        requests_timeout: float = 5,
    ) -> None: ...
    def me(self) -> dict[str, Any]: ...
    def current_user_top_tracks(self, limit: int = 20) -> dict[str, Any]: ...
