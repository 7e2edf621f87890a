"""Rows as any other program may write them, and all that the library does with one beside a good one."""

import traceback
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

import asyncpg
from hypothesis import strategies as st

from spotconn import (
    AesGcmSivCipher,
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    Profile,
    RowSecurityError,
    SchemaMismatch,
    SpotconnError,
    SpotifyAccounts,
    TokenGrant,
    TokenManager,
)
from spotconn.cipher import TokenColumn
from spotconn.models import is_token
from spotconn.testing import FakeSpotify
from support.connections import OWN_APP
from support.database import Database

T = TypeVar("T")

LEAST_SECRET = 12
"""Letters from which a text is looked for in the texts of errors; shorter ones are in them by chance."""
UNTRUE = (SchemaMismatch, RowSecurityError, DatabaseUnavailable)
"""Schema, grants and database are as they should be, so no call may say otherwise."""

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
EXTREME_MOMENTS = [
    "'infinity'",
    "'-infinity'",
    "'4714-11-24 00:00+00 BC'",
    "'294276-12-31 23:59:59.999999+00'",
    "'0001-01-01 00:00+00'",
    "'9999-12-31 23:59:59.999999+00'",
    "to_timestamp(1764265585000)",
]
moments = st.one_of(
    st.sampled_from(EXTREME_MOMENTS),
    st.integers(-210_866_803_200, 9_224_318_015_999).map("to_timestamp({})".format),
    st.integers(-(10**8), 10**8).map("now() + interval '{} seconds'".format),
    st.integers(-90, 90).map("now() + interval '{} seconds'".format),
)
"""Of a timestamptz, in SQL."""


def columns(**values: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    """Values of columns by their names."""
    return st.fixed_dictionaries(values)


@dataclass(frozen=True)
class TokenText:
    """The text of a token column: around the right token or in its place, and encrypted or not."""

    before: str
    right: bool
    after: str
    encrypted: bool


token_texts = st.one_of(
    st.just(TokenText("", right=True, after="", encrypted=True)),
    st.builds(
        TokenText,
        st.one_of(st.just(""), st.sampled_from(["Bearer ", '"', " ", "spotconn1.01234567.", "spotconn2."]), texts),
        st.booleans(),
        st.one_of(st.just(""), st.sampled_from(["\n", "\r\n", '"', "\u200b", "null"]), texts),
        st.booleans(),
    ),
)
rows = columns(
    id=st.uuids(),
    spotify_user_id=texts,
    access_token=token_texts,
    refresh_token=token_texts,
    expires_at=moments,
    connected_at=st.none() | moments,
    display_name=st.none() | texts,
    email=st.none() | texts,
    scope=st.none() | texts | st.sampled_from(["", "{user-read-email}", '["user-read-email"]', "[[[", "null"]),
)
clients = st.sampled_from([OWN_APP, "other-app", ""]) | texts
leases = columns(lease_id=st.none(), leased_at=st.none(), lease_until=st.none())
leases |= columns(lease_id=st.uuids(), leased_at=moments, lease_until=moments)
reasons = st.sampled_from(["expired", "revoked", "invalid", "unavailable"])
failures = columns(failure=st.none(), failed_at=st.none()) | columns(failure=reasons, failed_at=moments)
others = columns(
    fingerprint=st.none() | st.binary(max_size=32),
    client_id=st.none() | clients,
    refused_by=st.lists(st.none() | clients, max_size=3) | st.just([["a", "b"], ["c", OWN_APP]]),
    lapsed=st.booleans(),
    paused_at=st.none() | moments,
    retry_at=st.none() | moments,
    failures=st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 2**31 - 1]),
    refusals=st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 2**31 - 1]),
    saved_at=st.none() | moments,
    granted_at=st.none() | moments,
    saves=st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 2**63 - 1]),
    family=st.uuids(),
)
states = st.tuples(others, leases, failures).map(lambda parts: parts[0] | parts[1] | parts[2])


def extremes() -> list[tuple[dict[str, object], dict[str, object]]]:
    """Rows and their states with one moment in all columns of times, and the greatest numbers beside it."""
    right = TokenText("", right=True, after="", encrypted=False)
    names = dict.fromkeys(("spotify_user_id", "display_name", "email", "scope"), "")
    zero = UUID(int=0)
    found: list[tuple[dict[str, object], dict[str, object]]] = []
    for moment, failure in zip(EXTREME_MOMENTS, [None, "unavailable", "revoked"] * 3, strict=False):
        row: dict[str, object] = {**names, "id": zero, "access_token": right, "refresh_token": right}
        state: dict[str, object] = {"failures": 2**31 - 1, "refusals": 2**31 - 1, "saves": 2**63 - 1}
        state |= {
            "fingerprint": None,
            "refused_by": [None],
            "client_id": None,
            "family": zero,
            "lapsed": True,
            "failure": failure,
        }
        state |= dict.fromkeys(("paused_at", "retry_at", "saved_at", "granted_at", "leased_at", "lease_until"), moment)
        state |= {"lease_id": zero, "failed_at": None if failure is None else moment}
        row |= dict.fromkeys(("expires_at", "connected_at"), moment)
        found.append((row, state))
    return found


class ForeignRows:
    """A good user and one whose row is written anew for each example.

    Attributes:
        secrets: token texts of the example, which no error may show.
    """

    admin: asyncpg.Connection
    good: UUID
    odd: UUID
    _store: ConnectionStore
    _house: ConnectionAdmin
    _accounts: SpotifyAccounts

    def __init__(self, database: Database) -> None:
        self._database = database
        self._spotify = FakeSpotify()
        self._spotify.add_account("alice")
        self._cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
        self._stack = AsyncExitStack()
        self.secrets: set[str] = set()

    async def open(self) -> None:
        enter = self._stack.enter_async_context
        self.admin = await asyncpg.connect(self._database.admin_dsn)
        self._stack.push_async_callback(self.admin.close)
        await self.admin.execute("delete from auth.users")
        found = await self.admin.fetch("insert into auth.users (email) values ('a'), ('b') returning id")
        self.good, self.odd = (row["id"] for row in found)
        url = await enter(self._spotify.serve())
        self._accounts = await enter(SpotifyAccounts(OWN_APP, "demo-secret", accounts_url=url, api_url=url))
        self._store = await enter(ConnectionStore.open(self._database.dsn, cipher=self._cipher, max_size=3))
        self._house = await enter(ConnectionAdmin.open(self._database.admin_dsn, cipher=self._cipher))

    async def close(self) -> None:
        await self._stack.aclose()

    async def check(self, row: dict[str, object], state: dict[str, object], *, cache_ttl: float) -> None:
        """Write a row and its state, and make every call."""
        grants = {user: self._spotify.authorize("alice", ["user-read-email"]) for user in (self.good, self.odd)}
        for user, grant in grants.items():
            await self._store.save(user, grant, Profile(spotify_user_id="alice"), client_id=OWN_APP)
        await self._write(row, state, grants[self.odd])
        before = await self._good_row()
        async with TokenManager(
            self._store, self._accounts, refresh_timeout=0.3, lease=3, cache_ttl=cache_ttl
        ) as tokens:
            given = await self._use(tokens, grants[self.good].access_token)
            assert all(is_token(token) for token in given), "a token was given that cannot be sent"
            assert await self._good_row() == before
            await self._operate()
            assert (await self._store.get(self.good)).access_token == grants[self.good].access_token
            await self._end(tokens)

    def shown_in(self, text: str) -> bool:
        """Return whether a text shows a token of the example."""
        return any(secret in text for secret in self.secrets if len(secret) >= LEAST_SECRET)

    async def _use(self, tokens: TokenManager, good_token: str) -> list[str]:
        """Make the calls of a service; return the tokens that it was given for the odd user."""
        odd = self.odd
        given = [await self._met(tokens.get_valid_token(odd)), await self._met(tokens.get_valid_token(odd, min_ttl=60))]
        given.append(await self._met(tokens.get_valid_token(odd, scopes=["user-read-email"])))
        found = {user: answer async for user, answer in tokens.get_valid_tokens([odd, self.good])}
        assert found[self.good] == await tokens.get_valid_token(self.good) == good_token
        if isinstance(answer := found[odd], SpotconnError):
            self._check(answer)
        else:
            given.append(answer)
        status = await self._met(tokens.status(odd))
        assert status is None or type(status).model_validate_json(status.model_dump_json()) == status
        stored = await self._met(self._store.get(odd))
        many = await self._store.get_many([odd, self.good])
        assert many.keys() == {odd, self.good}
        if stored is not None:
            assert stored.reauthorize_by is None or stored.connected_at is not None
            if stored.access_token.isascii():  # no other text can have been refused, and the argument is
                given.append(await self._met(tokens.replace_rejected(odd, stored.access_token)))
        return [token for token in given if token is not None]

    async def _operate(self) -> None:
        """Make the calls of an operator, none of which ends at the odd row."""
        listed = [one async for one in self._house.expiring(within=timedelta(days=400))]
        listed += [one async for one in self._house.failing()]
        for one in listed:
            assert type(one).model_validate_json(one.model_dump_json()) == one
            assert one.reauthorize_by is None or one.connected_at is not None
        assert [one.failure for one in listed if one.user_id == self.good] == [None]
        assert (await self._house.stats()).connections == 2
        await self._house.recheck(since=datetime(2020, 1, 1, tzinfo=UTC))
        await self._house.assign_app(OWN_APP)
        # A rekey waits for leases, for half a minute each time.
        await self.admin.execute(
            "update spotconn.refresh_state set lease_id = null, leased_at = null, lease_until = null"
        )
        await self._met(self._house.rekey())

    async def _end(self, tokens: TokenManager) -> None:
        """Connect over the row, disconnect, and connect again: nothing of the odd row is left."""
        await self._store.save(self.odd, self._spotify.authorize("alice"), Profile(spotify_user_id="alice"))
        assert await tokens.disconnect(self.odd)
        grant = self._spotify.authorize("alice")
        await self._store.save(self.odd, grant, Profile(spotify_user_id="alice"))
        assert await tokens.get_valid_token(self.odd) == grant.access_token
        assert await tokens.get_valid_token(self.good)

    async def _met(self, call: Awaitable[T]) -> T | None:
        try:
            return await call
        except SpotconnError as error:
            self._check(error)
            return None

    def _check(self, error: SpotconnError) -> None:
        assert not isinstance(error, UNTRUE), error
        shown = "".join(traceback.format_exception(error)) + repr(error)
        assert not self.shown_in(shown)

    async def _good_row(self) -> list[asyncpg.Record]:
        return await self.admin.fetch("select * from public.spotify_connections where user_id = $1", self.good)

    async def _write(self, row: dict[str, object], state: dict[str, object], grant: TokenGrant) -> None:
        self.secrets = {grant.access_token, str(grant.refresh_token)}
        row = row | {
            "access_token": self._text(row["access_token"], grant.access_token, "access_token"),
            "refresh_token": self._text(row["refresh_token"], str(grant.refresh_token), "refresh_token"),
        }
        await self._update("public.spotify_connections", row, times={"expires_at", "connected_at"})
        state = dict(state)
        if state["fingerprint"] is None:
            del state["fingerprint"]
            fingerprint = "update spotconn.refresh_state set fingerprint = spotconn.fingerprint($1) where user_id = $2"
            await self.admin.execute(fingerprint, row["refresh_token"], self.odd)
        times = {"leased_at", "lease_until", "failed_at", "paused_at", "retry_at", "saved_at", "granted_at"}
        await self._update("spotconn.refresh_state", state, times=times)

    def _text(self, text: object, right: str, column: TokenColumn) -> str:
        assert isinstance(text, TokenText)
        token = text.before + right * text.right + text.after
        self.secrets.add(token)
        return self._cipher.encrypt(token, user_id=self.odd, column=column) if text.encrypted else token

    async def _update(self, table: str, values: dict[str, object], *, times: set[str]) -> None:
        """Set columns of the odd user; times are SQL."""
        sql = [f"{name} = {'null' if values[name] is None else values[name]}" for name in values if name in times]
        plain = {name: value for name, value in values.items() if name not in times}
        sql += [f"{name} = ${place}" for place, name in enumerate(plain, start=2)]
        await self.admin.execute(f"update {table} set {', '.join(sql)} where user_id = $1", self.odd, *plain.values())
