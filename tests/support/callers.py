"""Callers that make a call which fails, and what must hold of their errors and of what belongs to them."""

import asyncio
import inspect
import pickle
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from itertools import combinations
from types import FrameType

import pytest
from tenacity import Retrying, stop_after_attempt

import spotconn
from spotconn import SpotconnError
from support.leak_detector import chain

LIBRARY = frozenset(
    {"spotconn", "asyncpg", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio", "pydantic", "tenacity"}
)
PATIENCE = 20.0
"""Seconds after which a caller that has not ended never will."""

Call = Callable[[], Awaitable[object]]


class Caller:
    """One who makes a call, catches its error, adds a note to it and goes on with work of its own.

    Args:
        name: of it; also its result.
        within: make the call while an error of the caller's own is handled.

    Attributes:
        error: what the call raised.
        own: the error that was handled when the call began.
        caught: set once the error is caught; from then on the caller waits for `go_on`.
        endings: how often its `finally` block ran.
    """

    def __init__(self, name: str, *, within: bool = False) -> None:
        self.name = name
        self.within = within
        self.error: BaseException | None = None
        self.own: LookupError | None = None
        self.caught, self.go_on = asyncio.Event(), asyncio.Event()
        self.endings = 0
        self._own_frames: list[FrameType] = []
        self._attributes: dict[str, object] = {}
        self._pickled = b""
        self._pages: Generator[int] | None = None
        self._reader: asyncio.Task[str] | None = None

    async def run(self, call: Call) -> str:
        """Make the call and return the own name."""
        try:
            if self.within:
                await self._ask_within(call)
            else:
                await self._ask(call)
            return self.name
        finally:
            self.endings += 1
            self.caught.set()

    async def _ask_within(self, call: Call) -> None:
        self.own = await self._met_before()
        try:
            raise self.own
        except LookupError as own:
            self._own_frames = frames(own)
            await self._ask(call)

    async def _ask(self, call: Call) -> None:
        try:
            await call()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  the caller's way to go on
            self._look_at(error)
            self.caught.set()
            await self.go_on.wait()
        else:
            pytest.fail("the call did not fail")

    def _look_at(self, error: BaseException) -> None:
        self.error = error
        self._attributes = dict(vars(error))
        self._pickled = pickle.dumps(error)
        error.add_note(f"seen by {self.name}")

    async def _met_before(self) -> LookupError:
        """Return an error that a generator and a coroutine of the caller have met, and are suspended in handling."""
        met: list[LookupError] = []
        self._pages = _pages(self.name, met)
        next(self._pages)
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(met[0])
        reading = asyncio.Event()
        self._reader = asyncio.create_task(self._read(failed, reading))
        await reading.wait()
        return met[0]

    async def _read(self, failed: asyncio.Future[None], reading: asyncio.Event) -> str:
        try:
            await failed
        except LookupError:
            reading.set()
            await self.go_on.wait()
        return self.name

    def check(self) -> None:
        """Check that the error is of a class that callers know, and theirs alone; what they handled is as it was."""
        assert self.error is not None
        if isinstance(self.error, SpotconnError):
            assert type(self.error) is getattr(spotconn, type(self.error).__name__, None)
        assert getattr(self.error, "__notes__", None) == [f"seen by {self.name}"]
        for link in self.links():
            assert link is self.error or not hasattr(link, "__notes__")
            assert all(owner is self for owner in _owners(link))
        self._check_own()
        self._check_pickle()

    def _check_own(self) -> None:
        if self.own is None:
            return
        assert not hasattr(self.own, "__notes__")
        assert (self.own.__cause__, self.own.__context__) == (None, None)
        assert frames(self.own) == self._own_frames
        deep = [frame.f_locals for frame in frames(self.own) if frame.f_code is look_up.__code__]
        assert deep == [{"order": self.name}]
        assert self._pages is not None
        assert inspect.getgeneratorstate(self._pages) == inspect.GEN_SUSPENDED
        assert self._reader is not None
        assert _state(self._reader) == inspect.CORO_SUSPENDED

    def _check_pickle(self) -> None:
        twin = pickle.loads(self._pickled)
        assert type(twin) is type(self.error)
        assert str(twin) == str(self.error)
        assert vars(twin) == self._attributes

    async def check_end(self) -> None:
        """Check that all of the caller has ended once and by itself."""
        assert self.endings == 1
        if self._pages is not None and self._reader is not None:
            assert list(self._pages) == [1, 2]
            assert await self._reader == self.name

    def links(self) -> Iterator[BaseException]:
        """The error with its causes and contexts, as far as they belong to the call."""
        own = () if self.own is None else tuple(chain(self.own))
        return (link for link in chain(self.error or Exception()) if link not in own)

    def belongings(self) -> set[int]:
        """Identify the errors of the whole chain, and the frames of the caller in their tracebacks."""
        found = list(chain(self.error or Exception()))
        mine = [frame for link in found for frame in frames(link) if frame.f_code.co_filename == __file__]
        return {id(thing) for thing in (*found, *mine)}


def look_up(order: str) -> None:
    """Fail deep in the caller's own code."""
    raise LookupError(order)


def once(call: Callable[[str], None], argument: str) -> None:
    """Call through a library that this one uses, too: its frames are the caller's here."""
    Retrying(stop=stop_after_attempt(1), reraise=True)(call, argument)


def frames(error: BaseException) -> list[FrameType]:
    """Return the frames of a traceback, from the one that caught the error to the one that raised it."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def library_frames(error: BaseException) -> list[FrameType]:
    """Return those of the library and of the packages that it hands tokens to."""
    return [frame for frame in frames(error) if frame.f_globals["__name__"].partition(".")[0] in LIBRARY]


async def all_caught(callers: Iterable[Caller]) -> None:
    """Wait until each has caught its error, or ended."""
    async with asyncio.timeout(PATIENCE):
        for caller in callers:
            await caller.caught.wait()


def check_waiting(tasks: Iterable[asyncio.Task[str]]) -> None:
    """Check that the tasks of callers still wait for `go_on`; a failed one raises what it failed with."""
    for task in tasks:
        if task.done():
            task.result()
        assert _state(task) == inspect.CORO_SUSPENDED


def check_apart(callers: Iterable[Caller]) -> None:
    """Check that no error, note or frame of one caller shows in the error of another."""
    callers = list(callers)
    for caller in callers:
        caller.check()
    for one, other in combinations(callers, 2):
        assert one.error is not other.error
        assert not one.belongings() & other.belongings()


async def check_end(callers: Iterable[Caller], tasks: Iterable[asyncio.Task[str]]) -> None:
    """Let the callers go on, and check that each ends with its own result."""
    callers = list(callers)
    for caller in callers:
        caller.go_on.set()
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*tasks) == [caller.name for caller in callers]
        for caller in callers:
            await caller.check_end()


def _pages(order: str, met: list[LookupError]) -> Generator[int]:
    for number in range(3):
        try:
            once(look_up, order)
        except LookupError as error:
            met.append(error)
        yield number


def _owners(link: BaseException) -> list[Caller]:
    """The callers whose methods are in a traceback."""
    selves = [frame.f_locals.get("self") for frame in frames(link)]
    return [owner for owner in selves if isinstance(owner, Caller)]


def _state(task: asyncio.Task[str]) -> str:
    coroutine = task.get_coro()
    assert inspect.iscoroutine(coroutine)
    return inspect.getcoroutinestate(coroutine)
