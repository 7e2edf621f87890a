from collections.abc import Sequence

from spotipy.cache_handler import CacheFileHandler

class SpotifyOAuth:
    OAUTH_AUTHORIZE_URL: str
    OAUTH_TOKEN_URL: str
    def __init__(
        self,
        client_id: str,
        client_secret: str,
        redirect_uri: str,
        *,
        scope: Sequence[str],
        cache_handler: CacheFileHandler,
        open_browser: bool,
    ) -> None: ...
    def get_authorize_url(self) -> str: ...
    def get_access_token(self, code: str, *, as_dict: bool, check_cache: bool) -> str: ...
