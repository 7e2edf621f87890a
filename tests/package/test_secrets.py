"""No token, key, secret, password, code or verifier shows in anything that the library emits.

One test drives every public call, with success and with every kind of failure, and searches what came out: values and
objects as they print and pickle, log records of all loggers at DEBUG, spans and metrics, and errors with their chains,
attributes and pickles, and with the local variables of every frame that is not a test's.
"""

import asyncio
import base64
import copy
import logging
import pickle
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
import requests

import spotconn.blocking
from spotconn import (
    AesGcmSivCipher,
    ConnectFlow,
    Connection,
    ConnectionAdmin,
    ConnectionStore,
    DecryptionError,
    Profile,
    RefreshFailure,
    SpotconnError,
    SpotifyAccounts,
    TokenGrant,
    TokenManager,
)
from spotconn._settings import Settings
from spotconn._spotify.redirect import read_callback
from spotconn.blocking import BlockingTokens
from spotconn.events import Event
from spotconn.testing import Answer, FakeSpotify
from support.connections import connect
from support.consent import REDIRECT_URI, SCOPES, agree, sent
from support.database import Database
from support.exported import Exported
from support.leak_detector import LeakDetector, text_of
from support.public_calls import public_calls

CLIENT_SECRET = "demo-secret"
CODE, VERIFIER = "marked-code-4711", "marked-verifier-0123456789-0123456789-0123456789"
KEY, OLD_KEY, STRANGE_KEY = (AesGcmSivCipher.generate_key() for _ in range(3))
ELSEWHERE = """
create table public.elsewhere as select user_id, refresh_token, access_token from public.spotify_connections;
grant usage on schema auth to operator; grant select on public.elsewhere, auth.users to operator
"""
NOT_ELSEWHERE = """
drop table public.elsewhere; revoke usage on schema auth from operator; revoke select on auth.users from operator
"""
HOUSE = "alter table public.spotify_connections"
BROKEN = (Answer.truncated(), Answer.unavailable(), Answer.reset(), Answer(body=b"<html>"))
STALE = RefreshFailure(reason="unavailable")
OLDER = "update spotconn.refresh_state set granted_at = null"


@dataclass
class House:
    """Everything that the calls need."""

    detector: LeakDetector
    database: Database
    admin: asyncpg.Connection
    store: ConnectionStore
    accounts: SpotifyAccounts
    tokens: TokenManager
    spotify: FakeSpotify
    users: list[UUID]
    operator: str
    exported: Exported

    async def connected(self, user: UUID, ttl: float = -1) -> Connection:
        """A connection to refresh."""
        stored = await connect(self.store, self.spotify, user, ttl=ttl)
        self.detector.record(stored, self.store, stored.model_copy())
        return stored


async def run_sync(call: Callable[[], object]) -> object:
    return call()


Step = Callable[[House], Awaitable[None]]
STEPS: dict[str, Step] = {}


def drives(*names: str) -> Callable[[Step], Step]:
    """Marks a step by the public calls that it drives."""

    def register(step: Step) -> Step:
        STEPS.update(dict.fromkeys(names, step))
        return step

    return register


@drives("ConnectionStore.get", "ConnectionStore.get_many", "ConnectionStore.save", "ConnectionStore.delete",
        "ConnectionStore.check_save", "ConnectionStore.verify")  # fmt: skip
async def the_store(house: House) -> None:
    detector, store, user = house.detector, house.store, house.users[0]
    stored = await house.connected(user)
    grant = TokenGrant(
        access_token=stored.access_token, refresh_token=stored.refresh_token, expires_at=stored.expires_at
    )
    await store.verify()
    detector.record(grant, await store.get(user), *(await store.get_many([user])).values())
    await detector.fails(store.get_many([user, stored.access_token]))
    profile = Profile(spotify_user_id="alice")
    await detector.fails(store.get(stored.access_token))
    await detector.fails(store.save(uuid4(), grant, profile))
    await store.check_save(user)
    await detector.fails(store.check_save(uuid4()))
    await detector.fails(
        store.save(user, grant.model_copy(update={"access_token": f"{grant.access_token}\0"}), profile)
    )
    await house.admin.execute(f"{HOUSE} add constraint no_alice check (spotify_user_id <> 'alice') not valid")
    await detector.fails(store.save(user, grant, profile))
    await house.admin.execute(f"{HOUSE} drop constraint no_alice")
    await house.admin.execute(f"{HOUSE} add constraint short check (length(access_token) < 9) not valid")
    await detector.fails(store.save(user, grant, profile))
    await house.admin.execute(f"{HOUSE} drop constraint short")
    await detector.fails(store.delete(f"{stored.refresh_token}"))
    detector.record(await store.delete(user))
    await detector.fails(store.get(user))


@drives("ConnectionStore.begin_refresh", "ConnectionStore.finish_refresh", "ConnectionStore.fail_refresh")
async def the_turns(house: House) -> None:
    detector, store, user = house.detector, house.store, house.users[0]
    stored = await house.connected(user)
    turn = await store.begin_refresh(user, seen=stored.fingerprint)
    grant = house.spotify.authorize("alice")
    detector.record(turn, grant, await store.begin_refresh(user, seen=stored.fingerprint))
    bad = grant.model_copy(update={"refresh_token": f"{grant.refresh_token}\0"})
    await detector.fails(store.finish_refresh(turn, bad))
    detector.record(await store.finish_refresh(turn, grant), await store.fail_refresh(turn, STALE))
    gone = await store.begin_refresh(house.users[1], seen=stored.fingerprint)
    await detector.fails(store.finish_refresh(gone, grant))


@drives("ConnectionStore.as_user", "ConnectionStore.open")
async def the_ways_in(house: House) -> None:
    detector, user = house.detector, house.users[0]
    await house.connected(user)
    async with house.store.as_user(user) as connection:
        detector.record(await connection.fetchval("select 1"))
    await detector.fails(house.store.as_user("marked").__aenter__())
    wrong = house.database.dsn.replace(":app@", ":marked-password@")
    detector.secrets.add("marked-password")
    for dsn in (wrong, wrong.replace("127.0.0.1", "[marked-password"), "postgresql://a:marked-password@127.0.0.1:1/x"):
        await detector.fails(ConnectionStore.open(dsn, cipher=AesGcmSivCipher([KEY])).__aenter__())
        await detector.fails(ConnectionAdmin.open(dsn).__aenter__())


@drives("AesGcmSivCipher.encrypt", "AesGcmSivCipher.decrypt", "AesGcmSivCipher.__init__")
async def the_cipher(house: House) -> None:
    detector, user = house.detector, house.users[0]
    ring, strange = AesGcmSivCipher([KEY, OLD_KEY]), AesGcmSivCipher([STRANGE_KEY], require_encrypted=True)
    detector.record(ring, strange)
    async with AsyncExitStack() as stack:
        ours, theirs = [
            await stack.enter_async_context(ConnectionStore.open(house.database.dsn, cipher=cipher, max_size=1))
            for cipher in (ring, strange)
        ]
        stored = await connect(ours, house.spotify, user, ttl=-1)
        detector.record(ours, theirs, stored)
        await detector.fails(theirs.get(user))
        await detector.fails(house.store.get(user))
        await house.admin.execute("update public.spotify_connections set access_token = refresh_token")
        await detector.fails(ours.get(user))
        await house.admin.execute(
            "update public.spotify_connections set access_token = $1, refresh_token = $2",
            stored.access_token,
            ring.encrypt(stored.refresh_token, user_id=uuid4(), column="refresh_token"),
        )
        await detector.fails(ours.get(user))
        await detector.fails(theirs.begin_refresh(user, seen=stored.fingerprint))
        await house.connected(user)  # in plain text, which one that requires encryption refuses
        (refusal,) = (await theirs.get_many([user])).values()
        assert isinstance(refusal, DecryptionError)
        detector.recorded.append(text_of(refusal))
    await detector.fails(run_sync(lambda: strange.decrypt(stored.access_token, user_id=user, column="access_token")))
    await detector.fails(run_sync(lambda: AesGcmSivCipher([KEY, KEY])))
    await detector.fails(run_sync(lambda: AesGcmSivCipher([KEY, STRANGE_KEY[:-3]])))
    detector.secrets.add(STRANGE_KEY[:-3])


@drives("SpotifyAccounts.refresh", "SpotifyAccounts.profile", "SpotifyAccounts.exchange_code",
        "SpotifyAccounts.authorize_url", "SpotifyAccounts.__init__", "SpotifyAccounts.aclose")  # fmt: skip
async def the_accounts(house: House) -> None:
    detector, accounts, spotify = house.detector, house.accounts, house.spotify
    grant = spotify.authorize("alice")
    assert grant.refresh_token is not None
    detector.record(accounts, await accounts.profile(grant.access_token), await accounts.refresh(grant.refresh_token))
    callback = "http://127.0.0.1/callback"
    query = {"redirect_uri": callback, "scope": ""}
    code = spotify.new_code(query, "alice")
    detector.secrets.add(code)
    detector.record(await accounts.exchange_code(code, redirect_uri=callback, code_verifier=VERIFIER, timeout=5))
    await detector.fails(accounts.exchange_code(CODE, redirect_uri=callback, code_verifier=VERIFIER, timeout=5))
    await detector.fails(accounts.refresh(grant.refresh_token, timeout=5))
    await detector.fails(accounts.profile("marked-access-token", timeout=5))
    detector.record(accounts.authorize_url(redirect_uri=callback, scopes=["a"], state="s", code_challenge="c" * 43))
    for answer in (
        Answer.truncated(),
        Answer.unavailable(),
        Answer.reset(),
        Answer(body=b"<html>"),
        Answer(json=[CODE]),
    ):
        again = spotify.authorize("alice").refresh_token or ""
        for call in (
            accounts.refresh(again, timeout=0.3),
            accounts.exchange_code(CODE, redirect_uri=callback, code_verifier=VERIFIER, timeout=0.3),
        ):
            spotify.script(*[answer] * 30)
            await detector.fails(call)
            spotify._script.clear()
    unreachable = SpotifyAccounts("demo-client", CLIENT_SECRET, accounts_url="http://127.0.0.1:1")
    await detector.fails(unreachable.refresh("marked-access-token", timeout=0.2))
    wrong = SpotifyAccounts("demo-client", "marked-secret", accounts_url=accounts._accounts_url)
    await detector.fails(wrong.refresh(grant.refresh_token, timeout=5))
    for one in (unreachable, wrong):
        await one.aclose()
        detector.record(one)
    await detector.fails(run_sync(lambda: SpotifyAccounts("demo-client", " marked-secret")))
    await detector.fails(run_sync(lambda: SpotifyAccounts("c", accounts_url="http://marked-secret")))


@drives("TokenManager.get_valid_token", "TokenManager.get_access_token", "TokenManager.replace_rejected",
        "TokenManager.status", "TokenManager.disconnect", "TokenManager.aclose", "TokenManager.__init__",
        "TokenManager.check", "TokenManager.report_answer")  # fmt: skip
async def the_manager(house: House) -> None:
    detector, tokens, user, spotify = house.detector, house.tokens, house.users[0], house.spotify
    await house.connected(user)
    token = await tokens.get_valid_token(user)
    await house.admin.execute(OLDER)
    another = await tokens.replace_rejected(user, token)
    assert another != token
    detector.record(tokens, await tokens.status(user), await tokens.get_access_token(user))
    await detector.fails(tokens.get_valid_token(token))
    await detector.fails(tokens.get_access_token(token))
    await detector.fails(tokens.get_access_token(user, scopes=["never-granted"]))
    await detector.fails(tokens.replace_rejected(token, token))
    await detector.fails(tokens.status(token))
    await tokens.check()
    tokens.report_answer(user, 403, f"{token}: premium required of the owner of the app")
    await detector.fails(run_sync(lambda: tokens.report_answer(token, 403, token)))
    await detector.fails(tokens.disconnect(token))
    await detector.fails(tokens.get_valid_token(user, scopes=["never-granted"]))
    await detector.fails(tokens.get_valid_token(user, min_ttl=1e6))
    await detector.fails(tokens.replace_rejected(user, another))
    await house.connected(user)
    await house.admin.execute(OLDER)
    spotify.revoke("alice")
    await detector.fails(tokens.replace_rejected(user, (await house.store.get(user)).access_token))
    detector.record(await tokens.disconnect(user), await tokens.status(user))
    await detector.fails(tokens.get_valid_token(user))
    for answer in BROKEN:
        await house.connected(house.users[1])
        async with TokenManager(house.store, house.accounts, refresh_timeout=0.3, lease=1, cache_ttl=0) as other:
            house.exported.instrument(other)
            spotify.script(*[answer] * 30)
            await detector.fails(other.get_valid_token(house.users[1]))
            spotify._script.clear()
            detector.record(other)
    await detector.fails(run_sync(lambda: TokenManager(house.store, house.accounts, lease=-1)))


@drives("TokenManager.auth", "SpotifyAuth.async_auth_flow", "SpotifyAuth.sync_auth_flow", "SpotifyAuth.auth_flow")
async def the_clients(house: House) -> None:
    detector, user, spotify = house.detector, house.users[0], house.spotify
    stored = await house.connected(user, ttl=3600)
    auth = house.tokens.auth(user, allow=[house.accounts.api_url])
    url = f"{house.accounts.api_url}/v1/me"
    async with httpx.AsyncClient(auth=auth) as client:
        detector.record(client, auth, (await client.get(url)).text)
        spotify.revoke("alice")
        await house.admin.execute("update public.spotify_connections set access_token = 'marked-access-token'")
        await detector.fails(client.get(url))
        await detector.fails(client.request("GET", url, content=_chunks()))
    with httpx.Client(auth=auth) as blocking, pytest.raises(RuntimeError) as raised:
        blocking.get(url)  # noqa: ASYNC212  the point
    detector.recorded.append(text_of(raised.value))
    detector.secrets.add(stored.access_token)
    await detector.fails(run_sync(lambda: house.tokens.auth("marked-access-token")))
    await detector.fails(run_sync(lambda: house.tokens.auth(user, allow=["http://marked-secret"])))


async def _chunks() -> AsyncIterator[bytes]:
    yield b"once"


@drives("TokenManager.get_valid_tokens")
async def the_many(house: House) -> None:
    detector, tokens, users = house.detector, house.tokens, house.users
    house.spotify.add_account("bob")
    await connect(house.store, house.spotify, users[0], account="alice", ttl=-1)
    stored = await connect(house.store, house.spotify, users[1], account="bob", ttl=-1)
    house.spotify.revoke("alice")
    found = {
        user: answer async for user, answer in tokens.get_valid_tokens([*users, uuid4()], progress=detector.record)
    }
    errors = [answer for answer in found.values() if not isinstance(answer, str)]
    detector.recorded += [text_of(error) for error in errors]
    assert len(found) - len(errors) == 1
    started = tokens.get_valid_tokens(users)
    detector.record(started, await anext(started) and tokens._batches, *asyncio.all_tasks())
    await started.aclose()
    await detector.fails(anext(tokens.get_valid_tokens([stored.access_token])))
    await detector.fails(run_sync(lambda: tokens.get_valid_tokens(stored.access_token)))
    wrong = SpotifyAccounts("demo-client", "marked-secret", accounts_url=house.accounts._accounts_url)
    await house.connected(users[0])
    async with TokenManager(house.store, wrong) as other:
        refused = [answer async for _, answer in other.get_valid_tokens(users[:1]) if not isinstance(answer, str)]
        assert refused
        detector.recorded += [text_of(error) for error in refused]
    await wrong.aclose()
    await house.admin.execute("revoke execute on function spotconn.get_access_tokens from spotconn")
    try:
        await detector.fails(anext(tokens.get_valid_tokens(users)))
    finally:
        await house.admin.execute("grant execute on function spotconn.get_access_tokens to spotconn")


@drives("ConnectFlow.start", "ConnectFlow.finish", "ConnectFlow.from_env", "ConnectFlow.__init__", "ConnectFlow.aclose",
        "ConnectFlow.begin", "ConnectFlow.complete", "ConnectFlow.complete_unbound", "ConnectFlow.save")  # fmt: skip
async def the_connect_flow(house: House) -> None:
    detector, spotify, user = house.detector, house.spotify, house.users[0]
    spotify.add_account("refused", refusal="User not registered in the Developer Dashboard")
    flow = ConnectFlow(house.store, house.accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)
    answers = [("alice", "agree"), ("alice", "agree"), ("refused", "agree"), ("alice", "agree"), ("alice", "cancel")]
    logging.disable()  # the browser's own log may hold what it likes
    callbacks = [await agree(await flow.start(user), account, decision=decision) for account, decision in answers]
    logging.disable(logging.NOTSET)
    for callback in callbacks:
        query = parse_qsl(urlsplit(callback).query)
        detector.secrets |= {callback, *(value for name, value in query if name != "error")}
    rows = await house.admin.fetch("select code_verifier from spotconn.pending_connect")
    assert len(rows) == len(callbacks)
    detector.secrets |= {row["code_verifier"] for row in rows}
    connected, rejected, refused, cut, denied = callbacks
    detector.record(await flow.finish(user, connected), flow, house.store.pending, repr(read_callback(connected)))
    for callback in (connected, denied, refused, f"{rejected}x", "http://[" + connected):
        await detector.fails(flow.finish(user, callback))
    spotify.script(Answer(status=400, json={"error": "invalid_grant", "error_description": rejected}))
    await detector.fails(flow.finish(user, rejected))
    spotify.script(Answer.reset())
    await detector.fails(flow.finish(user, cut))
    await detector.fails(flow.start(f"no-uuid-{connected}"))
    await detector.fails(flow.finish(user, connected.partition("?")[2]))
    await _by_cookie(house, flow)
    await flow.aclose()
    wrong = "http://localhost/marked-secret"
    await detector.fails(run_sync(lambda: ConnectFlow(house.store, house.accounts, redirect_uri=wrong, scopes=SCOPES)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPOTIFY_REDIRECT_URI", wrong)
        await detector.fails(run_sync(lambda: ConnectFlow.from_env(house.store, house.accounts, scopes=SCOPES)))


async def _by_cookie(house: House, flow: ConnectFlow) -> None:
    detector, user = house.detector, house.users[1]
    logging.disable()
    begun = [await flow.begin(one, data={"next": "/a"}) for one in (user, None, None)]
    bot = await agree(await flow.start(user))
    callbacks = [await agree(one.url) for one in begun]
    logging.disable(logging.NOTSET)
    for url in (bot, *callbacks):
        detector.secrets |= {url, *(value for name, value in parse_qsl(urlsplit(url).query) if name != "error")}
    detector.secrets |= {cookie.partition("=")[2] for one in begun for cookie in sent(one).split("; ")[1:]}
    detector.record(*begun)
    await detector.fails(flow.complete(callbacks[0], sent(begun[1])))
    await detector.fails(flow.complete(callbacks[0], {"cookie": sent(begun[0])}))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    detector.record(await flow.complete(callbacks[0], sent(begun[0])), await flow.complete_unbound(bot))
    signed_in = await flow.complete(callbacks[1], sent(begun[1]))
    detector.record(signed_in, await flow.save(user, signed_in))
    await detector.fails(flow.save(f"no-uuid-{callbacks[0]}", signed_in))
    await detector.fails(flow.complete(callbacks[1], sent(begun[1])))
    await detector.fails(flow.complete_unbound(callbacks[2]))
    await detector.fails(flow.begin(user, data={callbacks[0]: "x" * 1000}))


@drives("TokenManager.from_env")
async def the_environment(house: House) -> None:
    environ = {
        "DATABASE_URL": house.database.dsn,
        "SPOTIFY_CLIENT_ID": "demo",
        "SPOTIFY_CLIENT_SECRET": "markedclientsecret",
        "SPOTCONN_ENCRYPTION_KEYS": f"{KEY},{OLD_KEY}",
    }
    house.detector.secrets.add("markedclientsecret")
    house.detector.record(Settings.read(environ))
    with pytest.MonkeyPatch.context() as patch:
        for change in (
            {},
            {"SPOTIFY_CLIENT_SECRET": "marked-secret!"},
            {"SPOTCONN_ENCRYPTION_KEYS": f"{KEY},{KEY[:9]}"},
        ):
            for name, value in (environ | change).items():
                patch.setenv(name, value)
            if not change:
                async with TokenManager.from_env() as tokens:
                    house.detector.record(tokens)
                continue
            await house.detector.fails(TokenManager.from_env().__aenter__())


@drives("ConnectionAdmin.expiring", "ConnectionAdmin.failing", "ConnectionAdmin.stats", "ConnectionAdmin.rekey",
        "ConnectionAdmin.recheck", "ConnectionAdmin.assign_app", "ConnectionAdmin.move", "ConnectionAdmin.migrate",
        "ConnectionAdmin.prune", "ConnectionAdmin.mark_asked", "ConnectionAdmin.open")  # fmt: skip
async def the_admin(house: House) -> None:
    detector, user = house.detector, house.users[0]
    stored = await house.connected(user)
    await house.store.fail_refresh(await house.store.begin_refresh(user, seen=stored.fingerprint), STALE)
    long = timedelta(days=365)
    async with ConnectionAdmin.open(house.operator, cipher=AesGcmSivCipher([KEY, OLD_KEY])) as admin:
        detector.record(
            admin, [one async for one in admin.expiring(within=long)], [one async for one in admin.failing()]
        )
        detector.record(await admin.recheck(since=datetime.now(UTC)), await admin.rekey(progress=detector.record))
        detector.record(await admin.stats(), await admin.assign_app("an-app"))
        detector.record(await admin.mark_asked([user]))
        await detector.fails(admin.mark_asked([house.operator]))
        await detector.fails(admin.assign_app("no app"))
        await detector.fails(anext(admin.migrate("nowhere")))
        await house.admin.execute(ELSEWHERE)
        detector.record([one async for one in admin.migrate("public.elsewhere", needs_account=False)])
        await house.admin.execute(NOT_ELSEWHERE)
        await detector.fails(admin.move(user, UUID(int=1)))
        await detector.fails(admin.recheck(since=datetime(2026, 1, 1)))  # noqa: DTZ001  the point
        detector.record(await admin.prune(dead_for=long, progress=detector.record))
        await detector.fails(admin.prune(dead_for=-long))
    async with ConnectionAdmin.open(house.operator, cipher=AesGcmSivCipher([STRANGE_KEY])) as admin:
        detector.record(await admin.rekey())
        await detector.fails(admin.move(user, house.users[1]))
    await house.admin.execute(f"{HOUSE} add constraint plain check (access_token not like 'spotconn1.%') not valid")
    await house.connected(house.users[1])
    async with ConnectionAdmin.open(house.operator, cipher=AesGcmSivCipher([KEY])) as admin:
        await detector.fails(admin.rekey())
    await house.admin.execute(f"{HOUSE} drop constraint plain")
    async with ConnectionAdmin.open(house.database.dsn) as admin:
        await detector.fails(admin.stats())
        await detector.fails(anext(admin.expiring(within=long)))


@drives("BlockingTokens.get_valid_token", "BlockingTokens.get_access_token", "BlockingTokens.replace_rejected",
        "BlockingTokens.status", "BlockingTokens.disconnect", "BlockingTokens.auth", "BlockingAuth.get_access_token",
        "BlockingTokens.start", "BlockingTokens.finish", "BlockingTokens.begin", "BlockingTokens.complete",
        "BlockingTokens.complete_unbound", "BlockingTokens.save", "BlockingTokens.close",
        "BlockingTokens.from_env", "BlockingTokens.check", "BlockingTokens.report_answer")  # fmt: skip
async def the_blocking_calls(house: House) -> None:
    url = house.accounts.api_url
    stored = await house.connected(house.users[0])

    @asynccontextmanager
    async def opened() -> AsyncGenerator[TokenManager]:
        async with (
            SpotifyAccounts("demo-client", CLIENT_SECRET, accounts_url=url, api_url=url) as accounts,
            ConnectionStore.open(house.database.dsn) as store,
            TokenManager(store, accounts, cache_ttl=0) as manager,
        ):
            yield manager

    with BlockingTokens(opened, redirect_uri=REDIRECT_URI, scopes=SCOPES) as tokens:
        await asyncio.to_thread(_blocking_tokens, house, tokens, stored)
        await house.admin.execute(OLDER)
        await asyncio.to_thread(_blocking_flow, house, tokens)
    await asyncio.to_thread(_blocking_clients, house, tokens)


def _blocking_fails(house: House, *calls: Callable[[], object]) -> None:
    for call in calls:
        with pytest.raises((SpotconnError, ValueError, RuntimeError)) as raised:
            call()
        house.detector.recorded.append(text_of(raised.value))


def _blocking_tokens(house: House, tokens: BlockingTokens, stored: Connection) -> None:
    detector, user, url = house.detector, house.users[0], house.accounts.api_url
    refresh = stored.refresh_token
    auth = tokens.auth(user)
    token = tokens.get_valid_token(user)
    detector.record(tokens, auth, tokens.get_access_token(user), tokens.status(user))
    tokens.check()
    thread = tokens._current
    assert thread is not None
    detector.record(thread, thread.resource, *threading.enumerate(), *asyncio.all_tasks(thread._loop))
    with requests.Session() as session:
        session.auth = auth
        detector.record(session, session.get(f"{url}/v1/me", timeout=60).request)
    _blocking_fails(
        house,
        lambda: tokens.get_valid_token(token),
        lambda: tokens.get_access_token(user, scopes=["never-granted"]),
        lambda: tokens.replace_rejected(user, token),
        lambda: tokens.status(token, timeout=refresh),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: tokens.disconnect(refresh),
        lambda: tokens.report_answer(refresh, 403, token),
        lambda: tokens.auth(token),
        lambda: tokens.auth(user, allow=[f"http://{token}"]),
        lambda: auth.get_access_token(as_dict=True),
    )
    detector.secrets |= {token, refresh}
    house.spotify.reject_access_token(token)
    _blocking_fails(house, lambda: requests.get(f"{url}/v1/me", auth=auth, timeout=60))


def _blocking_flow(house: House, tokens: BlockingTokens) -> None:
    detector, spotify, (user, other, third) = house.detector, house.spotify, house.users
    begun = [tokens.begin(user, data={"next": "/a"}), tokens.begin(None)]
    callbacks = [spotify.agree(url, "alice") for url in (tokens.start(other), *(one.url for one in begun))]
    unbound = spotify.agree(tokens.start(third), "alice")
    for url in (*callbacks, unbound):
        detector.secrets |= {url, *(value for name, value in parse_qsl(urlsplit(url).query) if name != "error")}
    detector.secrets |= {cookie.partition("=")[2] for one in begun for cookie in sent(one).split("; ")[1:]}
    _blocking_fails(house, lambda: tokens.complete(callbacks[1], sent(begun[1])))
    detector.record(tokens.finish(other, callbacks[0]), tokens.complete(callbacks[1], sent(begun[0]), user_id=user))
    signed_in = tokens.complete(callbacks[2], sent(begun[1]))
    detector.record(*begun, signed_in, tokens.save(user, signed_in), tokens.complete_unbound(unbound))
    _blocking_fails(
        house,
        lambda: tokens.finish(user, callbacks[0]),
        lambda: tokens.complete_unbound(callbacks[1]),
        lambda: tokens.save(callbacks[2], signed_in),
        lambda: tokens.begin(user, data={callbacks[0]: "x" * 1000}),
    )
    detector.record(tokens.disconnect(user))
    _blocking_fails(house, lambda: tokens.get_valid_token(user), lambda: tokens.replace_rejected(user, sent(begun[0])))


def _blocking_clients(house: House, closed: BlockingTokens) -> None:
    _blocking_fails(house, lambda: closed.finish(house.users[0], "/callback?code=marked-secret&state=marked-secret"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", "postgresql://a:marked-secret@127.0.0.1:1/x")
        patch.setenv("SPOTIFY_CLIENT_ID", "demo-client")
        patch.setenv("SPOTIFY_CLIENT_SECRET", "marked-secret")
        with BlockingTokens.from_env() as tokens:
            house.detector.record(tokens)
            _blocking_fails(house, lambda: tokens.status(house.users[0]))


@pytest.fixture
async def house(
    database: Database,
    admin: asyncpg.Connection,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    operator: str,
) -> AsyncIterator[House]:
    """All that the steps use, with a detector that knows the fixed secrets."""
    detector = LeakDetector(
        CLIENT_SECRET, CODE, VERIFIER, KEY, OLD_KEY, STRANGE_KEY, "marked-secret", "marked-access-token"
    )
    spotify.add_account("alice")

    async def hook(event: Event) -> None:
        detector.record(event, pickle.dumps(event))

    async with TokenManager(store, accounts, cache_ttl=0, on_event=hook) as tokens:
        exported = Exported()
        exported.instrument(tokens)
        yield House(detector, database, admin, store, accounts, tokens, spotify, users, operator, exported)
        exported.close()


NOTHING_TO_HIDE = {
    "AesGcmSivCipher.generate_key",
    "ConnectionStore.watch",
    "ConnectionStore.unwatch",
    "SpotifyAccounts.check_connect",
}


def test_every_public_call_is_driven() -> None:
    """A call that is added must be driven here, too."""
    assert (public_calls() | public_calls(spotconn.blocking)) - NOTHING_TO_HIDE <= set(STEPS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("step", dict.fromkeys(STEPS.values()), ids=lambda step: step.__name__)
async def test_nothing_that_is_emitted_holds_a_secret(
    house: House, step: Step, caplog: pytest.LogCaptureFixture
) -> None:
    """Successes and failures, with all loggers at DEBUG."""
    caplog.set_level(logging.DEBUG)
    await step(house)
    issued = house.spotify._tokens
    house.detector.secrets |= {*issued.access, *issued.refresh, *issued.revoked, *issued.codes}
    logged = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    exported = house.exported.text()
    if step is the_manager:
        assert "spotconn.refresh.duration" in exported
    house.detector.check(logged + exported.replace(", ", "\n"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenGrant(access_token="marked\nsecret", expires_at="marked secret"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: TokenGrant.model_validate({"access_token": ["marked secret"]}),
        lambda: RefreshFailure(reason="marked secret"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_refused_value_is_not_repeated(make: Callable[[], object]) -> None:
    """pydantic's errors name the field and show no input; the frames of the caller hold it anyway."""
    with pytest.raises(ValueError, match="validation error") as raised:
        make()
    assert "marked" not in f"{raised.value}{raised.value!r}"


def test_the_leak_detector_sees_what_it_should() -> None:
    """A secret in a local of a foreign frame, in a chain, an attribute, a pickle or encoded is found."""

    class Leaky(Exception):
        pass

    def raises(**attributes: Any) -> BaseException:
        try:
            try:
                compile("1 +", "marked-file", "eval")
            except SyntaxError as inner:
                raise Leaky from inner
        except Leaky as error:
            vars(error).update(attributes)
            return copy.copy(error) if not attributes else error
        raise AssertionError

    encoded = base64.b64encode(b"demo:" + CLIENT_SECRET.encode()).decode()
    detector = LeakDetector(CLIENT_SECRET)
    assert "marked-attribute" in text_of(raises(token="marked-attribute"))
    assert "marked-file" in text_of(raises(token="x"))
    detector.recorded.append("x" * 1001 + f"\n{base64.b64encode(CLIENT_SECRET.encode()).decode()}")
    with pytest.raises(AssertionError, match="1 lines"):
        detector.check("")
    assert encoded
