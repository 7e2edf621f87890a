"""The part of Supabase's auth server that a front end and a service speak to, simulated: sign in, and published keys.

Any password is right.
"""

import time
from uuid import UUID, uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from jwt.algorithms import ECAlgorithm
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TTL = 3600
"""Seconds that an access token is good for."""


class SimulatedSupabase:
    """A project with some users.

    Args:
        url: where the project answers: what `app` is mounted at.
        users: email addresses and ids.
    """

    def __init__(self, url: str, users: dict[str, UUID]) -> None:
        self.url = url
        self.users = users
        self._key = generate_private_key(SECP256R1())
        self._kid = str(uuid4())
        self.app = Starlette(
            routes=[
                Route("/auth/v1/.well-known/jwks.json", self._jwks, methods=["GET"]),
                Route("/auth/v1/token", self._sign_in, methods=["POST"]),
            ],
            middleware=[Middleware(CORSMiddleware, allow_origins=["*"], allow_headers=["*"])],
        )

    def access_token(self, user_id: UUID, *, ttl: float = TTL) -> str:
        """Return an access token of a user, good for `ttl` seconds."""
        now = int(time.time())
        claims = {
            "iss": f"{self.url}/auth/v1",
            "aud": "authenticated",
            "sub": str(user_id),
            "role": "authenticated",
            "iat": now,
            "exp": now + ttl,
        }
        return jwt.encode(claims, self._key, "ES256", {"kid": self._kid})

    async def _jwks(self, _request: Request) -> Response:
        key = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return JSONResponse({"keys": [key | {"kid": self._kid, "alg": "ES256", "use": "sig"}]})

    async def _sign_in(self, request: Request) -> Response:
        user_id = self.users.get((await request.json()).get("email"))
        if user_id is None:
            return JSONResponse({"error_code": "invalid_credentials"}, 400)
        return JSONResponse({"access_token": self.access_token(user_id), "token_type": "bearer", "expires_in": TTL})
