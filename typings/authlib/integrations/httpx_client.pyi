# What the benchmarks use of authlib, which has no types.
from collections.abc import Mapping

class AsyncOAuth2Client:
    token: Mapping[str, object]
    def __init__(
        self, client_id: str, client_secret: str, *, token: Mapping[str, object], token_endpoint: str
    ) -> None: ...
    async def ensure_active_token(self, token: Mapping[str, object]) -> None: ...
