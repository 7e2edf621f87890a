"""The way of a user to a stored connection: to Spotify's consent page and back (authorization code with PKCE)."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Self
from uuid import UUID

from spotconn._affinity import Affinity
from spotconn._settings import read_redirect_uri
from spotconn._spotify.authorization import code_challenge, is_state, new_code_verifier, new_state, started_at
from spotconn._spotify.redirect import Callback, UrlObject, checked_redirect_uri, read_callback, refusal
from spotconn._stopwatch import Stopwatch
from spotconn._tracebacks import scrubbed
from spotconn._user_ids import UserId, parse_user_id
from spotconn.accounts import SpotifyAccounts
from spotconn.errors import ConnectFailed, SpotifyUnavailable
from spotconn.events import DRAIN_TIMEOUT, Connected, Events, Hook
from spotconn.models import Connection, TokenGrant
from spotconn.store import ConnectionStore

STATE_LIFE = 600.0
"""Seconds that a user has between `start` and `finish`."""
TIMEOUT = 20.0
"""Seconds that `finish` has for its calls to Spotify, all retries included."""


@scrubbed
class ConnectFlow:
    """Connects a user's Spotify account, for the first time or again.

    `start` gives the URL to send the browser to; `finish` takes the URL at which it comes back. Both must be called
    for the user who is signed in then: a callback that another user started is refused. Works with and without a
    client secret. `aclose` it, or use it as a context manager, so that the process does not end before the hook has
    its last events.

    Args:
        store: where the connection is saved, and what was started until then.
        accounts: the app at Spotify.
        redirect_uri: where Spotify sends the browser back to, exactly as registered for the app.
        scopes: what to ask the user for; may be empty.
        on_event: is told `events.Connected`, in a thread of its own.
        clock: gives seconds since the epoch.

    Raises:
        ConfigurationError: Spotify would refuse the redirect URI; the text says why.
        ValueError: the scopes are malformed.
    """

    def __init__(
        self,
        store: ConnectionStore,
        accounts: SpotifyAccounts,
        *,
        redirect_uri: str,
        scopes: Iterable[str],
        on_event: Hook | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._affinity = Affinity("ConnectFlow")
        self._store = store
        self._accounts = accounts
        self._redirect_uri = checked_redirect_uri(redirect_uri)
        self._scopes = _checked_scopes(scopes)
        self._events = Events(on_event)
        self._clock = clock

    @classmethod
    def from_env(
        cls,
        store: ConnectionStore,
        accounts: SpotifyAccounts,
        *,
        scopes: Iterable[str],
        on_event: Hook | None = None,
    ) -> Self:
        """Make a flow with the redirect URI of SPOTIFY_REDIRECT_URI.

        Raises:
            ConfigurationError: the variable is missing, or Spotify would refuse it; the text names it.
            ValueError: the scopes are malformed.
        """
        redirect_uri = read_redirect_uri(os.environ)
        return cls(store, accounts, redirect_uri=redirect_uri, scopes=scopes, on_event=on_event)

    async def __aenter__(self) -> Self:
        """Return the flow, which the end of the block closes."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the flow."""
        await self.aclose()

    async def start(self, user_id: UserId, *, show_dialog: bool = False) -> str:
        """Start an authorization; it has to be finished within ten minutes.

        Several can be under way for one user, as with two tabs: the last one to be finished counts. Within ten minutes
        a user can start 20, in all processes together; finishing them does not make room for more.

        Args:
            user_id: an id of auth.users.
            show_dialog: let Spotify ask again although the user has agreed before, so that they can choose
                another account.

        Returns:
            The URL to redirect the browser to.

        Raises:
            ValueError: the user id is no UUID or no user of auth.users.
            TryLater: this user has started 20; `retry_after` is when the oldest of them is ten minutes old.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: nothing was started.
        """
        self._affinity.check()
        state, code_verifier = new_state(self._clock()), new_code_verifier()
        await self._store.pending.put(parse_user_id(user_id), state, code_verifier, life=STATE_LIFE)
        return self._accounts.authorize_url(
            redirect_uri=self._redirect_uri,
            scopes=self._scopes,
            state=state,
            code_challenge=code_challenge(code_verifier),
            show_dialog=show_dialog,
        )

    async def finish(self, user_id: UserId, callback_url: str | UrlObject) -> Connection:
        """Finish an authorization and save the connection, in place of an earlier one.

        A callback can be finished once; after an error, of whatever kind, the user has to start again. What was
        stored before stays as it is on every error. A callback that Spotify cannot have sent spends nothing.

        Args:
            user_id: who is signed in now.
            callback_url: the URL that the browser was redirected to, or its path and query: a str, or a URL object of
                Starlette, httpx or yarl. It holds secrets: keep it out of logs.

        Raises:
            ConnectFailed: the user did not agree ("denied"); the callback is none of this user's, or altered
                ("state_mismatch"); it was used before, or the user has disconnected since ("state_used"); it came too
                late ("state_expired"); Spotify rejected it, or cannot have sent it ("code_rejected"); Spotify refuses
                this account to this app ("not_allowed").
            SpotifyUnavailable: no usable answer in time.
            ConfigurationError: Spotify refuses this app or its request.
            ValueError: the user id is no UUID or no longer a user of auth.users, or `callback_url` is no such URL.
            DecryptionError: what was stored by `start` does not decrypt as this user's.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: nothing was saved, as far as is known.
        """
        user_id = parse_user_id(user_id)
        callback = read_callback(callback_url)
        # Before the state is spent.
        self._affinity.check()
        self._accounts.affinity.check()
        code_verifier = await self._spend(user_id, callback.state)
        if callback.error:
            raise refusal(callback.error)
        connection = await self._connected(user_id, callback, code_verifier)
        self._events.emit(
            Connected(user_id=user_id, spotify_user_id=connection.spotify_user_id, client_id=self._accounts.client_id)
        )
        return connection

    async def aclose(self) -> None:
        """Refuse new calls, and wait until the hook has the last events, for 2 seconds at most.

        In a child of fork this does nothing; in another event loop, RuntimeError.
        """
        if self._affinity.close():
            await self._events.drained(seconds=DRAIN_TIMEOUT)

    async def _spend(self, user_id: UUID, state: str) -> str:
        """Return the code verifier that belongs to a state, which can be done once."""
        pending = await self._store.pending.take(user_id, state) if is_state(state) else None
        if pending is not None and pending.used:
            raise ConnectFailed(
                "state_used", "this callback was used before, or the user has disconnected since; start again"
            )
        if pending is None and not self._is_old(state):
            raise ConnectFailed("state_mismatch", "this user has no such authorization under way; start again")
        if pending is None or pending.expired:
            raise ConnectFailed("state_expired", "the authorization took longer than ten minutes; start again")
        return pending.code_verifier

    def _is_old(self, state: str) -> bool:
        return is_state(state) and self._clock() - started_at(state) > STATE_LIFE

    async def _connected(self, user_id: UUID, callback: Callback, code_verifier: str) -> Connection:
        requested = Stopwatch(self._clock)
        grant = await self._accounts.exchange_code(
            callback.code,
            redirect_uri=self._redirect_uri,
            code_verifier=code_verifier,
            user_id=user_id,
            timeout=TIMEOUT,
        )
        grant = self._completed(grant)
        profile = await self._accounts.profile(grant.access_token, timeout=max(TIMEOUT - requested.elapsed, 0.0))
        client_id = self._accounts.client_id
        return await self._store.save(user_id, grant, profile, client_id=client_id, age=requested.elapsed)

    def _completed(self, grant: TokenGrant) -> TokenGrant:
        if grant.refresh_token is None:
            raise SpotifyUnavailable("Spotify granted no refresh token; start again later")
        # A scope left out is the one that was asked for (RFC 6749, section 5.1).
        return grant if grant.scope is not None else grant.model_copy(update={"scope": frozenset(self._scopes)})


def _checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    if isinstance(scopes, str):
        raise ValueError("scopes: expected several strings, not one")  # noqa: TRY004  bad input is a ValueError here
    names = tuple(scopes)
    if not all(name and name.isascii() and name.isprintable() and " " not in name for name in names):
        raise ValueError("scopes: expected words such as user-read-email")
    return names
