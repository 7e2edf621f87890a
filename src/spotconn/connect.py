"""The way of a user to a stored connection: to Spotify's consent page and back (authorization code with PKCE)."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Self, cast
from uuid import UUID

from spotconn._affinity import Affinity, Closing
from spotconn._arguments import checked_scopes
from spotconn._completion import STATE_LIFE, TIMEOUT, Completion
from spotconn._cookies import cookie_name, read_cookie, set_cookie
from spotconn._database.pending_connects import Claim, PendingConnect
from spotconn._settings import read_redirect_uri, variables
from spotconn._spotify.authorization import code_challenge, new_code_verifier, new_state
from spotconn._spotify.redirect import Callback, UrlObject, checked_redirect_uri, read_callback
from spotconn._tokens.single_flight import SingleFlight, finish
from spotconn._tracebacks import scrubbed
from spotconn._user_ids import UserId, parse_user_id
from spotconn.accounts import SpotifyAccounts
from spotconn.authorizations import Authorization, Completed, checked_data
from spotconn.events import DRAIN_TIMEOUT, Events, Hook
from spotconn.models import Connection
from spotconn.store import ConnectionStore


@scrubbed
class ConnectFlow(Closing):
    """Connects a user's Spotify account, for the first time or again.

    `start` gives the URL to send the browser to; `finish` takes the URL at which it comes back. Both must be called
    for the user who is signed in then: a callback that another user started is refused. Where the browser comes back
    without a session, `begin` and `complete` bind it by a cookie; `begin` also serves a sign-in with Spotify. Works
    with and without a client secret. `aclose` it, or use it as a context manager, so that the process does not end
    before an authorization under way and the events of the hook.

    Args:
        store: where the connection is saved, and what was started until then.
        accounts: the app at Spotify.
        redirect_uri: where Spotify sends the browser back to, exactly as registered for the app.
        scopes: what to ask the user for; may be empty.
        on_event: is told `events.Connected`, in a thread of its own; None for the hook of the store's `TokenManager`.
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
        self._scopes = checked_scopes(scopes)
        self._events = store.events if on_event is None else Events(on_event)
        self._clock = clock
        self._completion = Completion(
            store,
            accounts,
            redirect_uri=self._redirect_uri,
            scopes=self._scopes,
            events=self._events,
            clock=clock,
        )
        self._shared = SingleFlight[tuple[Callback, Claim, bool], Completed]("spotconn-connect", "ConnectFlow")

    @classmethod
    def from_env(
        cls,
        store: ConnectionStore,
        accounts: SpotifyAccounts,
        *,
        scopes: Iterable[str],
        on_event: Hook | None = None,
        environ: Mapping[str, str | None] | None = None,
    ) -> Self:
        """Make a flow with the redirect URI of SPOTIFY_REDIRECT_URI, of `environ` or else of this process.

        Raises:
            ConfigurationError: the variable is missing, or Spotify would refuse it; the text names it.
            ValueError: the scopes are malformed, or a value of `environ` is no text.
        """
        redirect_uri = read_redirect_uri(variables(environ))
        return cls(store, accounts, redirect_uri=redirect_uri, scopes=scopes, on_event=on_event)

    @property
    def redirect_uri(self) -> str:
        """Where Spotify sends the browser back to."""
        return self._redirect_uri

    async def start(self, user_id: UserId, *, scopes: Iterable[str] | None = None, show_dialog: bool = False) -> str:
        """Start an authorization; it has to be finished within ten minutes.

        Several can be under way for one user, as with two tabs: the last one to be finished counts. Within ten minutes
        a user can start 20, in all processes together; finishing them does not make room for more.

        Args:
            user_id: an id of auth.users.
            scopes: what to ask the user for, in place of the flow's own.
            show_dialog: let Spotify ask again although the user has agreed before, so that they can choose
                another account.

        Returns:
            The URL to redirect the browser to.

        Raises:
            ValueError: the user id is no UUID, or the scopes are malformed.
            UnknownUser: it is no user of auth.users.
            TryLater: this user has started 20; `retry_after` is when the oldest of them is ten minutes old.
            SpotifyUnavailable, ConfigurationError: this process knows that Spotify would not answer the callback.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: nothing was started.
        """
        pending = self._new(parse_user_id(user_id), scopes, {})
        return await self._started(pending, new_state(self._clock()), show_dialog=show_dialog)

    async def begin(
        self,
        user_id: UserId | None,
        *,
        scopes: Iterable[str] | None = None,
        data: Mapping[str, str] = {},
        show_dialog: bool = False,
    ) -> Authorization:
        """Begin an authorization that is bound to the browser by a cookie; otherwise as `start`.

        Args:
            user_id: an id of auth.users; None where nobody is known yet, as in a sign-in with Spotify.
            scopes: what to ask the user for, in place of the flow's own.
            data: texts for `Completed.data`, such as where to go afterwards: 8 at most, with 1,000 characters together.
            show_dialog: as in `start`.

        Returns:
            The URL to redirect the browser to, and the Set-Cookie header to send with it.

        Raises:
            ValueError: as `start`, or `data` has something else or more.
            UnknownUser, TryLater, SpotifyUnavailable, ConfigurationError: as `start`; without a user none is counted.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: as `start`.
        """
        pending = self._new(None if user_id is None else parse_user_id(user_id), scopes, checked_data(data))
        state, cookie = new_state(self._clock()), secrets.token_urlsafe(32)
        url = await self._started(pending, state, show_dialog=show_dialog, cookie=cookie)
        return Authorization(url=url, cookie=set_cookie(self._cookie_name(state), cookie))

    async def finish(self, user_id: UserId, callback_url: str | UrlObject, *, same_account: bool = False) -> Connection:
        """Finish an authorization and save the connection, in place of an earlier one.

        A callback can be finished once; after an error, of whatever kind, the user has to start again. What was
        stored before stays as it is on every error. A callback that Spotify cannot have sent spends nothing, nor does
        one that is another's. Calls with the same callback at the same time have the same result; one that is
        cancelled does not stop the connect.

        Args:
            user_id: who is signed in now.
            callback_url: the URL that the browser was redirected to, or its path and query: a str, or a URL object of
                Starlette, httpx or yarl. It holds secrets: keep it out of logs.
            same_account: refuse another Spotify account than the one that is stored.

        Raises:
            ConnectFailed: the user did not agree ("denied"); the callback is none of this user's, or altered
                ("state_mismatch"); it was used before, or the user has disconnected since ("state_used"); it came too
                late ("state_expired"); Spotify rejected it, or cannot have sent it ("code_rejected"); Spotify refuses
                this account to this app ("not_allowed"); another account is stored ("other_account").
            SpotifyUnavailable: no usable answer in time; the text says whether the callback is spent.
            ConfigurationError: Spotify refuses this app or its request.
            ValueError, UnknownUser: `callback_url` is no such URL; the id is no UUID, or no user of auth.users.
            DecryptionError: what was stored by `start` does not decrypt as this user's.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: nothing was saved, as far as is known.
        """
        user_id, callback = parse_user_id(user_id), read_callback(callback_url)
        completed = await self._complete(callback, Claim(callback.state, "user", user_id), same_account=same_account)
        return cast("Connection", completed.connection)  # there is a user

    async def complete(
        self,
        callback_url: str | UrlObject,
        cookie: str | None,
        *,
        user_id: UserId | None = None,
        same_account: bool = False,
    ) -> Completed:
        """Complete an authorization of `begin` in the browser that began it, and save the connection of its user.

        Otherwise as `finish`. Without a user nothing is saved: give what is returned to `save`.

        Args:
            callback_url: as in `finish`.
            cookie: the Cookie header of the request; None or "" where it has none.
            user_id: who is signed in now, if known: another user than the one who began is refused.
            same_account: as in `finish`.

        Raises:
            ConnectFailed: as `finish`; also where the cookie is missing, or of another authorization
                ("state_mismatch").
            SpotifyUnavailable, ConfigurationError, ValueError, UnknownUser, DecryptionError: as `finish`.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: as `finish`.
        """
        callback = read_callback(callback_url)
        value = read_cookie(cookie, self._cookie_name(callback.state))
        known = None if user_id is None else parse_user_id(user_id)
        return await self._complete(callback, Claim(callback.state, "cookie", known, value), same_account=same_account)

    async def complete_unbound(self, callback_url: str | UrlObject, *, same_account: bool = False) -> Completed:
        """Complete an authorization of `start` for the user who started it, in whichever browser that comes back.

        For a bot or a device that has no session in the browser. Nothing shows that the person who agreed at Spotify
        is the user who started: who sends the URL of `start` to somebody else gets the Spotify account of those who
        agree. So give that URL in private, and show the user which account was connected, with a way to undo it.
        Otherwise as `finish`; an authorization of `begin` is refused.

        Args:
            callback_url: as in `finish`.
            same_account: as in `finish`.

        Raises:
            ConnectFailed, SpotifyUnavailable, ConfigurationError, ValueError, DecryptionError: as `finish`.
            UnknownUser, DatabaseUnavailable, SchemaMismatch, RowSecurityError: as `finish`.
        """
        callback = read_callback(callback_url)
        return await self._complete(callback, Claim(callback.state, "none"), same_account=same_account)

    async def save(self, user_id: UserId, completed: Completed, *, same_account: bool = False) -> Connection:
        """Save what `complete` has returned of an authorization without a user, in place of an earlier connection.

        Args:
            user_id: an id of auth.users: who has signed in.
            completed: of this flow, a moment ago.
            same_account: as in `finish`.

        Raises:
            ConnectFailed, UnknownUser: another account is stored ("other_account"); the id is no user of auth.users.
            ValueError: the user id is no UUID, or the authorization has a user of its own.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: nothing was saved, as far as is known.
        """
        self._affinity.check()
        if completed.user_id is not None:
            raise ValueError("completed: it belongs to the user who began it, and was saved")
        age = self._clock() - (completed.grant.expires_at.timestamp() - (completed.grant.expires_in or 0))
        return await self._completion.save(
            parse_user_id(user_id), completed.grant, completed.profile, age=max(age, 0.0), same_account=same_account
        )

    async def aclose(self) -> None:
        """Refuse new calls; wait for authorizations under way, for 20 seconds at most, and then for the hook, for 2.

        In a child of fork this does nothing; in another event loop, RuntimeError.
        """
        if self._affinity.close():
            try:
                await finish(self._shared.tasks, seconds=TIMEOUT, what="authorizations")
            finally:
                self._shared.cut_off()
                await self._events.drained(seconds=DRAIN_TIMEOUT)

    def _cookie_name(self, state: str) -> str:
        return cookie_name(state, secure=self._redirect_uri.lower().startswith("https:"))

    def _new(self, user_id: UUID | None, scopes: Iterable[str] | None, data: Mapping[str, str]) -> PendingConnect:
        self._affinity.check()
        requested = self._scopes if scopes is None else checked_scopes(scopes)
        return PendingConnect(user_id, new_code_verifier(), requested, data)

    async def _started(
        self, pending: PendingConnect, state: str, *, show_dialog: bool, cookie: str | None = None
    ) -> str:
        await self._accounts.secret.reread()
        self._accounts.check_connect(pending.user_id)
        await self._store.pending.put(pending, state, life=STATE_LIFE, cookie=cookie)
        return self._accounts.authorize_url(
            redirect_uri=self._redirect_uri,
            scopes=pending.scopes or (),
            state=state,
            code_challenge=code_challenge(pending.code_verifier),
            show_dialog=show_dialog,
        )

    async def _complete(self, callback: Callback, claim: Claim, *, same_account: bool) -> Completed:
        # Before the state is spent.
        self._affinity.check()
        self._accounts.affinity.check()
        work = partial(self._completion.complete, callback, claim, same_account=same_account)
        return await self._shared.join((callback, claim, same_account), work)
