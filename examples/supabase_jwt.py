"""Who sends a request, by an access token (JWT) of Supabase.

Each kind of key has one algorithm, so that no token chooses how it is verified:

    ES256  the public key that `kid` names among those that the project publishes (JWKS)
    HS256  the project's legacy secret, if one is set
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self
from uuid import UUID

import jwt
from fastapi import HTTPException

AUDIENCE = "authenticated"
LEEWAY = 10
"""Seconds that the clocks of the two hosts may differ."""
TIMEOUT = 5
"""Seconds that the project has to send its keys."""


class AccessTokens:
    """The access tokens of one project.

    Args:
        project_url: such as https://abcdefghijkl.supabase.co.
        legacy_secret: for a project that still signs with HS256; never the secret of anything else.
    """

    def __init__(self, project_url: str, *, legacy_secret: str | None = None) -> None:
        self._issuer = f"{project_url.rstrip('/')}/auth/v1"
        self._legacy_secret = legacy_secret
        # It requests the keys every five minutes, and for an unknown `kid` once in thirty seconds at most.
        self._keys = jwt.PyJWKClient(f"{self._issuer}/.well-known/jwks.json", timeout=TIMEOUT)
        # The client blocks. One thread is enough, as its requests wait for one another.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jwks")

    async def __aenter__(self) -> Self:
        """Return it; the end of the block stops its thread."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the thread, without waiting for a request under way."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def user_id(self, token: str) -> UUID | None:
        """Return the user of a token; None if it is not valid for this project.

        Raises:
            HTTPException: 503, the project has not sent its keys.
        """
        try:
            claims = await self._verified(token)
            return UUID(claims["sub"])
        except jwt.PyJWKClientConnectionError:
            failure = HTTPException(503, "The keys of the sign-in are out of reach.", {"Retry-After": str(TIMEOUT)})
        except (jwt.PyJWTError, ValueError):
            return None
        raise failure

    async def _verified(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        key: Any
        match header.get("alg"):
            case "ES256" as algorithm:
                key = await self._published_key(str(header.get("kid")))
            case "HS256" as algorithm if self._legacy_secret:
                key = self._legacy_secret
            case _:
                raise jwt.InvalidAlgorithmError
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=AUDIENCE,
            issuer=self._issuer,
            leeway=LEEWAY,
            options={"require": ["aud", "exp", "iss", "sub"]},
        )
        return claims

    async def _published_key(self, kid: str) -> jwt.PyJWK:
        reading = asyncio.get_running_loop().run_in_executor(self._thread, self._keys.get_signing_key, kid)
        try:
            async with asyncio.timeout(2 * TIMEOUT):
                return await reading
        except (TimeoutError, ValueError):  # no answer in time, or one that is not JSON
            failure = jwt.PyJWKClientConnectionError()
        raise failure
