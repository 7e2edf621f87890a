"""The access tokens of Supabase that the FastAPI example takes, and those that it does not."""

import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from simulated_supabase import SimulatedSupabase
from spotconn.testing._server import serve
from supabase_jwt import AccessTokens

SECRET = "legacy-secret-of-the-project-0123456789"
USER = uuid4()


class Project(SimulatedSupabase):
    """A project whose keys and counts of requests a test can see."""

    requests = 0

    @property
    def kid(self) -> str:
        return self._kid

    @property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def signed(self, **changes: Any) -> str:
        """An access token with some claims changed; None leaves one out."""
        return jwt.encode(self.claims(**changes), self._key, "ES256", {"kid": self._kid})

    def claims(self, **changes: Any) -> dict[str, Any]:
        claims = {"iss": f"{self.url}/auth/v1", "aud": "authenticated", "sub": str(USER), "exp": time.time() + 60}
        return {name: value for name, value in (claims | changes).items() if value is not None}


@pytest.fixture
async def project() -> AsyncIterator[Project]:
    """A project that answers in the event loop of the test: a call that blocked the loop would get no key."""
    project = Project("", {})

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        project.requests += 1
        await project.app(scope, receive, send)

    async with serve(counted) as project.url:
        yield project


def forged(project: Project) -> dict[str, str]:
    """Tokens that are not valid for the project, by what is wrong."""
    other_key, kid = generate_private_key(SECP256R1()), {"kid": project.kid}
    es256, claims = project.signed(), project.claims()
    head, body, signature = es256.split(".")
    return {
        "none": jwt.encode(claims, "", "none", kid),
        "confusion": unchecked_hs256(claims, project.public_key, kid),
        "another key": jwt.encode(claims, other_key, "ES256", kid),
        "unknown kid": jwt.encode(claims, other_key, "ES256", {"kid": "other"}),
        "no kid": jwt.encode(claims, other_key, "ES256"),
        "key in the header": jwt.encode(claims, other_key, "ES256", kid | {"jku": "http://127.0.0.1:1/", "jwk": {}}),
        "another secret": jwt.encode(claims, SECRET[::-1], "HS256"),
        "another hash": jwt.encode(claims, SECRET * 2, "HS512"),
        "another algorithm's name": ".".join((jwt.encode(claims, SECRET, "HS256").split(".")[0], body, signature)),
        "altered": ".".join((head, body[:-4] + "AAAA", signature)),
        "another issuer": project.signed(iss="https://other.supabase.co/auth/v1"),
        "no issuer": project.signed(iss=None),
        "another audience": project.signed(aud="anon"),
        "no audience": project.signed(aud=None),
        "expired": project.signed(exp=time.time() - 60),
        "no end": project.signed(exp=None),
        "not yet": project.signed(nbf=time.time() + 60),
        "no user": project.signed(sub=None),
        "no UUID": project.signed(sub="alice"),
        "an API key": jwt.encode({"iss": "supabase", "role": "service_role", "exp": time.time() + 60}, SECRET),
        "nothing": "",
        "no token": "a.b.c",
        "deep": urlsafe_b64encode(b"[" * 30_000).decode() + ".e30.",
    }


def unchecked_hs256(claims: dict[str, Any], key: bytes, headers: dict[str, Any]) -> str:
    """A token signed with a public key as if it were a secret, which PyJWT itself refuses to sign."""
    unsigned = jwt.encode(claims, "x" * 32, "HS256", headers).rpartition(".")[0]
    algorithm = jwt.get_algorithm_by_name("HS256")
    return f"{unsigned}.{urlsafe_b64encode(algorithm.sign(unsigned.encode(), key)).decode().rstrip('=')}"


async def test_a_token_of_the_project_names_its_user(project: Project) -> None:
    """By the published key, and by the legacy secret where one is set; the keys are requested once."""
    legacy = jwt.encode(project.claims(), SECRET, "HS256")
    async with AccessTokens(project.url, legacy_secret=SECRET) as both, AccessTokens(f"{project.url}/") as current:
        assert [await both.user_id(token) for token in (project.signed(), legacy, project.access_token(USER))] == [
            USER
        ] * 3
        assert (await current.user_id(project.signed()), await current.user_id(legacy)) == (USER, None)
    assert project.requests == 2


@pytest.mark.parametrize("legacy_secret", [SECRET, None])
async def test_any_other_token_names_nobody(project: Project, legacy_secret: str | None) -> None:
    """A forged, foreign or malformed one; none makes the keys be requested again and again."""
    async with AccessTokens(project.url, legacy_secret=legacy_secret) as tokens:
        users = {name: await tokens.user_id(token) for name, token in forged(project).items()}
        assert users == dict.fromkeys(users)
        unknown = [jwt.encode({}, generate_private_key(SECP256R1()), "ES256", {"kid": str(n)}) for n in range(20)]
        assert {await tokens.user_id(token) for token in unknown} == {None}
    assert project.requests == 1


async def test_keys_out_of_reach_are_not_the_users_fault() -> None:
    """The service answers 503 for tokens that need them, and goes on with the others."""
    async with AccessTokens("http://127.0.0.1:1", legacy_secret=SECRET) as tokens:
        elsewhere = Project("http://127.0.0.1:1", {})
        with pytest.raises(HTTPException) as raised:
            await tokens.user_id(elsewhere.signed())
        assert (raised.value.status_code, raised.value.headers) == (503, {"Retry-After": "5"})
        assert await tokens.user_id(jwt.encode(elsewhere.claims(), SECRET, "HS256")) == USER
        assert await tokens.user_id("a.b.c") is None


@pytest.mark.parametrize(("status", "body"), [(200, "<html>"), (500, "{}"), (302, "{}")])
async def test_a_page_in_place_of_the_keys_is_not_the_users_fault(status: int, body: str) -> None:
    """As of a proxy: nobody is signed in, and nobody is told that their token is bad."""
    async with serve(Response(body, status, {"Location": "/"})) as url, AccessTokens(url) as tokens:
        with pytest.raises(HTTPException):
            await tokens.user_id(Project(url, {}).signed())
