"""Event loops of the tests: one in a thread of its own, and one whose clock is set forward."""

import asyncio
import threading
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines on its loop, one call after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)


@contextmanager
def loop_thread() -> Generator[LoopThread]:
    """Context manager: a running loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield LoopThread(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be set forward, so that its timers are due.

    Attributes:
        ahead: seconds by which it is.
    """

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead
