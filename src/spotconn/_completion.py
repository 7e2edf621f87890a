"""What follows the callback of an authorization: the code exchange, the profile, the saved connection."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from uuid import UUID

from spotconn._database.pending_connects import Claim, PendingConnect, expired
from spotconn._spotify.authorization import is_state, started_at
from spotconn._spotify.redirect import Callback, refusal
from spotconn._stopwatch import Stopwatch
from spotconn.accounts import SpotifyAccounts
from spotconn.authorizations import Completed
from spotconn.errors import ConnectFailed, SpotconnError, SpotifyUnavailable
from spotconn.events import Connected, Events
from spotconn.models import Connection, Profile, TokenGrant
from spotconn.store import ConnectionStore

STATE_LIFE = 600.0
"""Seconds that a user has from the start of an authorization to its callback."""
TIMEOUT = 20.0
"""Seconds for the calls to Spotify that follow a callback, all retries included."""


class Completion:
    """Completes the authorizations of a `ConnectFlow`, whose arguments these are."""

    def __init__(
        self,
        store: ConnectionStore,
        accounts: SpotifyAccounts,
        *,
        redirect_uri: str,
        scopes: Iterable[str],
        events: Events,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._redirect_uri = redirect_uri
        self._scopes = frozenset(scopes)
        self._events = events
        self._clock = clock

    async def complete(self, callback: Callback, claim: Claim, *, same_account: bool) -> Completed:
        """Claim the authorization of a callback, exchange its code, and save the connection of its user, if known."""
        if not callback.error:
            self._accounts.check_connect(claim.user_id)  # before the state and the code are spent
        pending = await self._spend(claim)
        if callback.error:
            raise refusal(callback.error)
        requested = Stopwatch(self._clock)
        grant = await self._exchange(callback, pending)
        profile = await self._profile(grant, pending.user_id, seconds=max(TIMEOUT - requested.elapsed, 0.0))
        connection = None
        if pending.user_id is not None:
            connection = await self.save(
                pending.user_id, grant, profile, age=requested.elapsed, same_account=same_account
            )
        return Completed(
            user_id=pending.user_id, connection=connection, grant=grant, profile=profile, data=pending.data
        )

    async def save(
        self, user_id: UUID, grant: TokenGrant, profile: Profile, *, age: float, same_account: bool
    ) -> Connection:
        """Save a connection and emit the event.

        Args:
            user_id: whose.
            grant: of Spotify.
            profile: of the account.
            age: seconds since Spotify was asked for the grant.
            same_account: refuse another account than the stored one.
        """
        client_id = self._accounts.client_id
        connection = await self._store.save(
            user_id, grant, profile, client_id=client_id, age=age, same_account=same_account
        )
        self._events.emit(
            Connected(
                user_id=user_id,
                client_id=client_id,
                spotify_user_id=connection.spotify_user_id,
                previous_spotify_user_id=connection.previous_spotify_user_id,
            )
        )
        return connection

    async def _spend(self, claim: Claim) -> PendingConnect:
        """Return the authorization that belongs to a state, which can be done once."""
        pending = await self._store.pending.take(claim) if is_state(claim.state) else None
        if pending is not None:
            return pending
        if is_state(claim.state) and self._clock() - started_at(claim.state) > STATE_LIFE:
            raise expired()
        raise ConnectFailed(
            "state_mismatch", "no authorization was started with the state of this callback; start again"
        )

    async def _exchange(self, callback: Callback, pending: PendingConnect) -> TokenGrant:
        grant = await self._accounts.exchange_code(
            callback.code,
            redirect_uri=self._redirect_uri,
            code_verifier=pending.code_verifier,
            user_id=pending.user_id,
            timeout=TIMEOUT,
        )
        if grant.refresh_token is None:
            raise SpotifyUnavailable("Spotify granted no refresh token; start again later")
        if grant.scope is not None:
            return grant
        # A scope left out is the one that was asked for (RFC 6749, section 5.1).
        requested = self._scopes if pending.scopes is None else frozenset(pending.scopes)
        return grant.model_copy(update={"scope": requested})

    async def _profile(self, grant: TokenGrant, user_id: UUID | None, *, seconds: float) -> Profile:
        """Return the account of a grant; where Spotify does not say, the stored one if it has the same refresh token.

        Raises:
            SpotifyUnavailable: Spotify does not say in time, and the grant may be of any account.
        """
        try:
            return await self._accounts.profile(grant.access_token, timeout=seconds)
        except SpotifyUnavailable as error:
            unavailable = error
        stored = await self._stored(user_id)
        if stored is None or stored.refresh_token != grant.refresh_token or not stored.spotify_user_id:
            raise _dropped(unavailable)
        return Profile(
            spotify_user_id=stored.spotify_user_id,
            display_name=stored.display_name or None,
            email=stored.email or None,
            account_id=stored.account_id,
        )

    async def _stored(self, user_id: UUID | None) -> Connection | None:
        with suppress(SpotconnError):  # what Spotify could not say is what the caller hears of
            return None if user_id is None else await self._store.get(user_id)
        return None


def _dropped(unavailable: SpotifyUnavailable) -> SpotifyUnavailable:
    """Return the error of a grant whose account is not known."""
    wait = unavailable.retry_after
    when = "later" if wait is None else f"in {wait:.0f} s"
    return SpotifyUnavailable(
        f"the account could not be read ({unavailable}), so what Spotify has just granted is dropped, and what was "
        f"stored stays; start again {when}",
        retry_after=wait,
        answered=unavailable.answered,
    )
