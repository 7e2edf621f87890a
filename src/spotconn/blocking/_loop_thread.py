"""An event loop in a daemon thread, and what is open in it, for calls from any other thread."""

import asyncio
import atexit
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import wait
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from contextvars import Context
from typing import Any, Generic, TypeVar

from spotconn._affinity import running_loop
from spotconn._tokens.single_flight import SingleFlight
from spotconn._tracebacks import Failure
from spotconn.errors import TryLater

R = TypeVar("R")
T = TypeVar("T")

_log = logging.getLogger("spotconn")

CLOSE_TIMEOUT = 40.0
"""Seconds that closing waits for the thread; the limits of a manager's own `aclose` are over by then."""
CLOSED = "this BlockingTokens is closed: make another one, or close it when nothing of its process needs it any more"
STOP_TIMEOUT = 1.0
"""Seconds that a call has to end once it is cancelled."""


def check_caller() -> None:
    """Raise RuntimeError in a thread that runs an event loop."""
    if running_loop() is not None:
        raise RuntimeError(
            "a call of BlockingTokens would stop the event loop that runs in this thread: await a TokenManager there, "
            "or call BlockingTokens in another thread (asyncio.to_thread)"
        )


def check_threads() -> None:
    """Raise RuntimeError where threads have been replaced by what cannot run an event loop beside others."""
    if threading.get_ident.__module__ != "_thread":
        raise RuntimeError(
            "BlockingTokens needs real threads, and gevent or eventlet has replaced them in this process: use "
            "threads or processes for the workers that need tokens (gunicorn: gthread, Celery: prefork)"
        )


class LoopThread(Generic[R]):
    """Runs calls on an event loop of its own, in this process only.

    The first call opens what all calls work with; if that fails, the next one tries again. What a call raises is
    handed over as a value, so each caller raises an object of its own.

    Args:
        opened: opens what the calls work with, in the event loop. It is closed there, too.

    Attributes:
        pid: the process in which the thread runs. A child of fork has no such thread.
        resource: what is open; None before the first call.
    """

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[R]]) -> None:
        self.pid = os.getpid()
        self.resource: R | None = None
        self._opened = opened
        self._opening = SingleFlight[str, R]("spotconn-open", "BlockingTokens")
        self._stack = AsyncExitStack()
        self._stop = asyncio.Event()
        self._lock = threading.RLock()  # a signal handler may close what its own thread is calling
        self._accepting = True
        self._loop = _EventLoop()
        # In a context of its own: a free-threaded Python gives it that of the first caller otherwise.
        self._thread = threading.Thread(target=Context().run, args=(self._run,), name="spotconn", daemon=True)
        self._thread.start()
        # The loop still runs then: daemon threads stop after these functions.
        atexit.register(self.close)

    @property
    def usable(self) -> bool:
        """Return whether this process may call it. One that was closed tells its callers so; a dead one cannot."""
        return self.pid == os.getpid() and (self._thread.is_alive() or not self._accepting)

    def call(self, work: Callable[[R], Awaitable[T]], timeout: float) -> T:
        """Return what `work` returns on the event loop.

        Args:
            work: is given what is open.
            timeout: seconds to wait. The work goes on after that: what it has begun is not torn in the middle.

        Raises:
            TryLater: the time is over.
            RuntimeError: the thread is closed.
            Exception: what the work has raised.
        """
        coroutine = self._outcome(work)
        with self._lock:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop) if self._accepting else None
        if future is None:
            coroutine.close()
        elif not wait([future], timeout).done:
            raise TryLater(f"no answer within {timeout:g} s; the call goes on in the background")
        if future is None or future.cancelled():
            raise RuntimeError(CLOSED)
        outcome = future.result()
        if isinstance(outcome, Failure):
            raise outcome.renewed()
        return outcome

    def post(self, work: Callable[[R], object]) -> None:
        """Have `work` called on the event loop with what is open, without waiting; nothing where there is none."""
        with self._lock:
            if self._accepting and self.resource is not None:
                self._loop.call_soon_threadsafe(work, self.resource)

    def close(self) -> None:
        """Refuse new calls, close what is open, and wait for the thread, for 40 seconds at most.

        In a child of fork this does nothing.
        """
        if self.pid != os.getpid():
            return
        with self._lock:
            if self._accepting and self._thread.is_alive():
                # After the calls that were accepted before, in the order of the loop.
                self._loop.call_soon_threadsafe(self._stop.set)
            self._accepting = False
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            _log.error("the event loop of BlockingTokens did not end in time; what it had not saved may be lost")
        atexit.unregister(self.close)

    def abandon(self) -> bool:
        """Have the thread close what is open and end, without waiting; return whether it was to be closed.

        It takes no lock: the garbage collector may call it amid anything. The end of the interpreter waits for it.
        """
        if self.pid != os.getpid() or not self._accepting or not self._thread.is_alive():
            return False
        self._accepting = False
        with suppress(RuntimeError):  # of an event loop that has failed meanwhile
            self._loop.call_soon_threadsafe(self._stop.set)
        return True

    def _run(self) -> None:
        task = self._loop.create_task(self._serve())
        try:
            while not task.done():
                with suppress(SystemExit):  # of a function of the caller's, which ends its own task and no other
                    self._loop.run_until_complete(task)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        """Wait for the end, close what is open, and cancel the calls that still wait then."""
        await self._stop.wait()
        await _cancel(self._opening.tasks)
        try:
            await self._stack.aclose()
        except Exception as error:  # noqa: BLE001  of the caller's own block; nobody else would hear of it
            _log.error("closing BlockingTokens failed with %s", Failure(error))
        await _cancel(asyncio.all_tasks() - {asyncio.current_task()})
        await self._loop.shutdown_asyncgens()

    async def _outcome(self, work: Callable[[R], Awaitable[T]]) -> T | Failure:
        try:
            return await work(self.resource or await self._open())
        except Exception as error:  # noqa: BLE001  whatever it is, the caller has it
            return Failure(error)

    async def _open(self) -> R:
        """Wait until the resource is open."""
        if "resource" not in self._opening:
            # Not in the context of this call, which what is open would keep for ever.
            Context().run(self._opening.begin, "resource", self._enter_block)
        return await self._opening.join("resource", self._enter_block)

    async def _enter_block(self) -> R:
        try:
            self.resource = await self._stack.enter_async_context(self._opened())
        except SystemExit as error:
            trace = error.__traceback__
            raise RuntimeError("what opens the manager has called sys.exit").with_traceback(trace) from None
        return self.resource


class _EventLoop(asyncio.SelectorEventLoop):
    """Looks up host names in its own thread where the interpreter ends.

    No executor takes work then, and a grant may still have to be saved over a new connection.
    """

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> list[Any]:
        try:
            return await super().getaddrinfo(host, port, **options)
        except RuntimeError:
            return socket.getaddrinfo(host, port, **options)


async def _cancel(tasks: "set[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=STOP_TIMEOUT)
