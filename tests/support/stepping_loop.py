"""An event loop in virtual time that a test drives one callback at a time, and a walk through all its orders."""

import asyncio
import heapq
import itertools
import random
import signal
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from types import FrameType
from typing import Any, Self, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
TaskFactory = Callable[..., "asyncio.Task[Any]"]

LONGEST_STEP = 1.0
"""Seconds of processor time that all steps of one order may take; they take some milliseconds."""
AGAIN = 0.05
"""Seconds until the next step that does not end is broken off."""

MOST_DEPARTURES = 8
"""Places at which an order drawn by lot does not take the first choice."""


class SteppingLoop(asyncio.AbstractEventLoop):
    """Run callbacks first in, first out, as asyncio does, but only when told to; never wait, and do no I/O.

    Attributes:
        steps: the number of callbacks and events that have run.
        tasks: all tasks that were made, in their order.
        complaints: what was given to the exception handler.
    """

    def __init__(self, factory: TaskFactory | None = None) -> None:
        self.steps = 0
        self.tasks: list[asyncio.Task[Any]] = []
        self.complaints: list[str] = []
        self._factory = factory
        self._futures: list[asyncio.Future[Any]] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[asyncio.TimerHandle] = []
        self._now = 0.0

    @classmethod
    def new(cls, factory: TaskFactory | None = None) -> Self:
        """Make a loop; the methods that it lacks are not used."""
        return cls(factory)

    @contextmanager
    def running(self) -> Generator[None]:
        """Context manager: be the running loop of this thread."""
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(outer)

    def is_ready(self) -> bool:
        """Whether a callback waits to be run."""
        while self._ready and self._ready[0].cancelled():
            self._ready.popleft()
        return bool(self._ready)

    def has_timer(self) -> bool:
        """Whether a timer is set."""
        while self._timers and self._timers[0].cancelled():
            heapq.heappop(self._timers)
        return bool(self._timers)

    def step(self) -> None:
        """Run the next callback."""
        self.steps += 1
        self._ready.popleft()._run()

    def fire(self) -> None:
        """Let time pass up to the first timer, and queue its callback."""
        timer = heapq.heappop(self._timers)
        self._now = max(self._now, timer.when())
        self._ready.append(timer)

    def pass_time(self, seconds: float) -> None:
        """Let time pass; timers that are due then fire late."""
        self._now += seconds

    def begin(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Make a task and run its first step now, as part of a callback that runs at this point."""
        task = asyncio.Task(coroutine, loop=self, name=name)
        self.steps += 1
        self._ready.pop()._run()
        return task

    def unretrieved(self) -> list[str]:
        """The errors that asyncio would report because nobody has looked at them."""
        return [repr(future) for future in (*self.tasks, *self._futures) if future._log_traceback]

    # What asyncio's tasks, futures and functions use of a loop.

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, timer)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled timer is passed over."""

    def create_future(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.Future(loop=self)
        self._futures.append(future)
        return future

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        if self._factory is None:
            task = asyncio.Task[Any](coro, loop=self, name=name, context=context)
        else:
            task = self._factory(self, coro, name=name, context=context)
        self.tasks.append(task)
        return task

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")


class Watchdog:
    """Break off a step that does not end, such as a loop without a suspension.

    It counts processor time, so a machine that is busy with something else sets off nothing. It works on the main
    thread only, as signals do.

    Attributes:
        where: the lines that ran when time was up; empty otherwise.
    """

    class StoodStill(BaseException):
        """Raised in the step that does not end."""

    def __init__(self) -> None:
        self.where = ""

    @contextmanager
    def watching(self) -> Generator[None]:
        """Context manager: watch what runs in the block, from each `arm` on."""
        before = signal.signal(signal.SIGVTALRM, self._bark)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)

    def arm(self, seconds: float = LONGEST_STEP) -> None:
        """Begin to count anew."""
        self.where = ""
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, AGAIN)

    def _bark(self, _signal: int, frame: FrameType | None) -> None:
        lines = [f"{line.name}, line {line.lineno}" for line in traceback.extract_stack(frame)]
        self.where = " < ".join(reversed(lines[-3:]))
        raise self.StoodStill


class Trail:
    """The choices of one order: those of an earlier order up to a point, then always the first.

    Attributes:
        labels: what was chosen, in words.
        bounded: whether it takes the first choice from the horizon of its scenario on.
    """

    bounded = True

    def __init__(self, prefix: Sequence[int] = ()) -> None:
        self._prefix = prefix
        self._taken: list[tuple[int, int]] = []
        self.labels: list[str] = []

    def choose(self, labels: Sequence[str]) -> int:
        """Choose one of several continuations."""
        chosen = self._choice(len(self._taken), labels)
        if chosen >= len(labels):
            raise RuntimeError("the same choices did not lead to the same order")
        self._taken.append((chosen, len(labels)))
        return chosen

    def __len__(self) -> int:
        """The number of choices that were taken."""
        return len(self._taken)

    def _choice(self, place: int, _labels: Sequence[str]) -> int:
        return self._prefix[place] if place < len(self._prefix) else 0

    def note(self, label: str) -> None:
        """Keep in words what comes next."""
        self.labels.append(label)

    def following(self) -> list[int] | None:
        """The choices that lead to the next order; None after the last one."""
        taken = list(self._taken)
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return None
        return [*(chosen for chosen, _ in taken[:-1]), taken[-1][0] + 1]

    def __str__(self) -> str:
        """The order in words; callbacks that run one after the other are counted."""
        words: list[str] = []
        count = 0
        for label in [*self.labels, ""]:
            if label == STEP:
                count += 1
                continue
            if count:
                words.append(f"{count} step{'s' * (count > 1)}")
            count = 0
            words.append(label)
        return "\n  ".join(words)


class Sample(Trail):
    """An order drawn by lot from all, without a horizon.

    Callbacks are interrupted at some places, drawn from the whole length of an order. While none is ready, every second
    order draws each time what happens next; the others take the first choice there, too, but at those places.

    Args:
        lots: draws it all.
        length: the number of choices among which the places lie.
    """

    bounded = False

    def __init__(self, lots: random.Random, length: int) -> None:
        super().__init__()
        self._lots = lots
        self._departures = {lots.randrange(length) for _ in range(lots.randint(0, MOST_DEPARTURES))} if length else ()
        self._idles_by_lot = length > 0 and lots.random() < 0.5

    def _choice(self, place: int, labels: Sequence[str]) -> int:
        if place in self._departures:
            return self._lots.randrange(1, len(labels))
        return self._lots.randrange(len(labels)) if self._idles_by_lot and labels[0] != STEP else 0


STEP = "step"
"""The label of a callback."""


def trails() -> Iterator[Trail]:
    """Walk depth first through all orders; each trail is to be followed to its end before the next is asked for."""
    prefix: list[int] | None = []
    while prefix is not None:
        trail = Trail(prefix)
        yield trail
        prefix = trail.following()


def samples(name: str) -> Iterator[Trail]:
    """Draw orders by lot, the same ones for a name each time; the first of them takes the first choice throughout.

    Late choices come up as often as early ones. Each trail is to be followed to its end before the next is asked for.
    """
    length = 0
    for number in itertools.count():
        trail = Sample(random.Random(f"{name} {number}"), length)
        yield trail
        length = max(length, len(trail))
