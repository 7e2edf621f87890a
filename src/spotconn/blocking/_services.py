"""What is open in the event loop of `BlockingTokens`."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

from spotconn._observer import NOBODY
from spotconn._user_ids import UserId, parse_user_id
from spotconn.connect import ConnectFlow
from spotconn.events import Hook
from spotconn.manager import TokenManager

Opener = Callable[[], AbstractAsyncContextManager[TokenManager]]


@dataclass(frozen=True)
class FlowOptions:
    """The arguments of the flow.

    Attributes:
        redirect_uri: where Spotify sends the browser back to; None for SPOTIFY_REDIRECT_URI.
        scopes: what to ask a user for.
        on_event: the hook of the flow; None for that of the manager.
        environ: variables in place of those of this process.
    """

    redirect_uri: str | None
    scopes: tuple[str, ...]
    on_event: Hook | None
    environ: Mapping[str, str | None] | None

    def flow(self, manager: TokenManager) -> ConnectFlow:
        """Make a flow over the store and the accounts of a manager."""
        store, accounts = manager.store, manager.accounts
        if self.redirect_uri is None:
            return ConnectFlow.from_env(
                store, accounts, scopes=self.scopes, on_event=self.on_event, environ=self.environ
            )
        return ConnectFlow(store, accounts, redirect_uri=self.redirect_uri, scopes=self.scopes, on_event=self.on_event)


class Services:
    """What is open in the event loop.

    Args:
        manager: gives the tokens.
        stack: closes the flow.
        options: of the flow, which is made for the first call that needs it.
    """

    def __init__(self, manager: TokenManager, stack: AsyncExitStack, options: FlowOptions) -> None:
        self.manager = manager
        self._stack = stack
        self._options = options
        self._flow: ConnectFlow | None = None

    @property
    def flow(self) -> ConnectFlow:
        """The flow. Workers that connect nobody need no redirect URI."""
        if self._flow is None:
            self._flow = self._options.flow(self.manager)
            self._stack.push_async_callback(self._flow.aclose)
        return self._flow

    async def api_url(self) -> str:
        """Return the base URL of the Web API."""
        return self.manager.accounts.api_url

    def concern(self, user_id: UUID, status: int) -> bool:
        """Return whether an answer of the Web API may tell something new. May be called in any thread."""
        return self.manager._source.answers.concern(user_id, status)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    def report_answer(self, user_id: UserId, status: int, body: bytes | str) -> None:
        """Record an answer of the Web API, as `TokenManager.report_answer` does."""
        with suppress(RuntimeError):  # it is being closed
            self.manager.report_answer(user_id, status, body)

    def cached_token(self, user_id: UserId) -> str | None:
        """Return the token that the manager would serve without waiting. May be called in any thread."""
        manager = self.manager
        if manager._source.observer is not NOBODY:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  it counts calls
            return None
        cache, clock = manager._cache, manager._clock  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        found = cache.fresh(parse_user_id(user_id), clock())
        return None if found is None else found.access_token


@asynccontextmanager
async def opened_services(opened: Opener, options: FlowOptions) -> AsyncGenerator[Services]:
    """Context manager: a manager, and a flow once it is asked for, which is closed before it."""
    async with opened() as manager, AsyncExitStack() as stack:
        yield Services(manager, stack, options)
