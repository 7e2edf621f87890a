"""Tokens for many users: read in batches, refreshed a bounded number at a time, handed out as they come.

However many users there are, a pass holds no more than three batches of them, and one task for each refresh that may
run at once and for each user who waits for Spotify. All its tasks end when its iterator ends, for whatever reason, and
when the manager closes.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

from spotconn._affinity import Affinity
from spotconn._stopwatch import loop_time
from spotconn._tokens.batch_policy import Answer, Policy
from spotconn._tokens.status import TokensProgress
from spotconn._tokens.stored_token import StoredToken
from spotconn._tokens.throttle_wait import ThrottleWait
from spotconn._tokens.user_ids import UserIdReader, UserIds
from spotconn._tracebacks import Failure, renewed
from spotconn.errors import DatabaseUnavailable, NotConnected, SpotconnError
from spotconn.store import ConnectionStore

_log = logging.getLogger("spotconn")

BATCH = 200
"""Users read in one statement; also answers that wait for the caller, users that wait for Spotify, and answers from one
`progress` to the next."""
STOP_TIMEOUT = 10.0
"""Seconds that what is under way has to end, once it is cancelled."""

Answers = AsyncGenerator[tuple[UUID, str | SpotconnError], None]
Progress = Callable[[TokensProgress], object]


class Batches:
    """The passes over many users of one manager.

    Args:
        store: where the connections are.
        policy: how one user is served.
        affinity: of the manager.
    """

    def __init__(self, store: ConnectionStore, policy: Policy, affinity: Affinity) -> None:
        self._store = store
        self._policy = policy
        self._affinity = affinity
        self._running: set[_Run] = set()

    def answers(
        self, user_ids: UserIds, concurrency: int, throttle_timeout: float, progress: Progress | None
    ) -> Answers:
        """Yield what `TokenManager.get_valid_tokens` does."""
        self._affinity.check()
        if concurrency < 1:
            raise ValueError("concurrency: expected 1 or more")
        one = _Run(self._store, self._policy, UserIdReader(user_ids), concurrency, throttle_timeout)
        return self._answers_of(one, _Counter(progress))

    def cancel(self) -> set[asyncio.Task[Any]]:
        """Begin to end all passes; the tasks to wait for."""
        return {one.cancel() for one in self._running}

    async def _answers_of(self, one: "_Run", counter: "_Counter") -> Answers:
        self._affinity.check()
        self._running.add(one)
        one.start().add_done_callback(lambda _: self._running.discard(one))
        try:
            while await one.next():
                if one.answer is None:
                    counter.report(one.waiting)
                else:
                    yield one.answer.user_id, one.answer.value
                    counter.count(failed=isinstance(one.answer.found, SpotconnError))
                    if counter.is_due:
                        counter.report(one.waiting)
            if one.is_cancelled:
                self._affinity.check()  # it is the manager that has cancelled it
            if failure := one.failure or one.task.result():
                raise failure.renewed() if isinstance(failure, Failure) else failure
            counter.report()
        finally:
            await one.stop()


class _Counter:
    """Counts the answers that the caller has done with, and reports from time to time."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = self._failed = 0

    @property
    def is_due(self) -> bool:
        return self._done % BATCH == 0

    def count(self, *, failed: bool) -> None:
        self._done += 1
        self._failed += failed

    def report(self, waiting: float = 0.0) -> None:
        if self._progress is not None:
            self._progress(TokensProgress(done=self._done, failed=self._failed, waiting=waiting))


class _Run:
    """One task that reads the batches, with its own tasks that refresh.

    Attributes:
        answer: what `next` has found; None where a wait for Spotify has begun.
        failure: what has ended it early.
        is_cancelled: whether the manager has.
        task: returns what the caller's iterator of user ids has raised.
    """

    task: asyncio.Task[Failure | Exception | None]

    def __init__(
        self, store: ConnectionStore, policy: Policy, user_ids: UserIdReader, concurrency: int, throttle_timeout: float
    ) -> None:
        self._store = store
        self._policy = policy
        self._user_ids = user_ids
        self._concurrency = concurrency
        self._turns = asyncio.Semaphore(concurrency)
        self._deferrals = asyncio.Semaphore(BATCH)
        self._due: asyncio.Queue[tuple[UUID, StoredToken]] = asyncio.Queue(concurrency)
        self._answers: asyncio.Queue[Answer | None] = asyncio.Queue(BATCH)
        self._throttle = ThrottleWait(throttle_timeout, self._wake)
        self._aged: tuple[Answer, float] | None = None
        self._ending = asyncio.Event()
        self.answer: Answer | None = None
        self.failure: Failure | None = None
        self.is_cancelled = False

    @property
    def waiting(self) -> float:
        """Seconds until the waits for Spotify are over."""
        return self._throttle.remaining(loop_time())

    def start(self) -> asyncio.Task[Failure | Exception | None]:
        """Begin."""
        self.task = asyncio.create_task(self._run(), name="spotconn-many")
        self.task.add_done_callback(lambda _: self._wake())
        return self.task

    def cancel(self) -> asyncio.Task[Failure | Exception | None]:
        """Begin to end everything, because the manager closes."""
        self.is_cancelled = True
        self._end()
        self.task.cancel()
        return self.task

    async def stop(self) -> None:
        """End everything."""
        self.task.cancel()
        _, late = await asyncio.wait([self.task], timeout=STOP_TIMEOUT)
        if late:
            _log.error("the iterator of user ids given to get_valid_tokens does not end when it is cancelled")

    async def next(self) -> bool:
        """Wait for the next answer, or until a wait for Spotify begins; False once there will be none."""
        try:
            while not (self._aged is None and self._is_over and self._answers.empty()):
                if self._aged is not None:
                    self.answer = await self._again(*self._aged)
                elif (answer := await self._answers.get()) is not None:
                    self.answer = await self._still_good(answer)
                elif self.waiting:
                    self.answer = None
                else:
                    continue
                return True
        except Exception as error:  # noqa: BLE001  raised by the caller, as an object of its own
            self._fail(Failure(error))
        return False

    async def _still_good(self, answer: Answer) -> Answer | None:
        """Return an answer, after a refresh if its token has aged; None where Spotify asks to wait before that."""
        if self._policy.clock() < answer.until or not isinstance(answer.found, StoredToken):
            return answer
        newer = await self._refreshed(answer.user_id, answer.found)
        until = self._throttle.until(newer.found, loop_time())
        self._aged = None if until is None else (answer, until)
        return newer if until is None else None

    async def _again(self, aged: Answer, until: float) -> Answer | None:
        self._aged = None
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._ending.wait()
        return await self._still_good(aged)

    @property
    def _is_over(self) -> bool:
        """Whether no answer comes any more; the task may still run, if the caller's iterator does not end."""
        return self._ending.is_set() or self.task.done()

    def _fail(self, failure: Failure) -> None:
        self.failure = self.failure or failure
        self._end()

    def _end(self) -> None:
        self._ending.set()
        self._wake()

    def _wake(self) -> None:
        """Let the caller, if it waits for an answer, look at what has changed."""
        if not self._answers.full():
            self._answers.put_nowait(None)

    async def _run(self) -> Failure | Exception | None:
        """Do it all; what has ended it early is returned, not raised."""
        try:
            async with asyncio.TaskGroup() as group:
                workers = [
                    group.create_task(self._refresh(group), name="spotconn-many-refresh")
                    for _ in range(self._concurrency)
                ]
                while batch := await self._user_ids.batch(BATCH):
                    await self._read(batch)
                await self._due.join()
                for worker in workers:
                    worker.cancel()
        except ExceptionGroup as failed:
            self._fail(Failure(failed.exceptions[0]))
        return self._user_ids.error

    async def _read(self, user_ids: list[UUID]) -> None:
        """Answer what a batch can answer, then hand on what is to be refreshed."""
        stored = await self._stored(user_ids)
        due: list[tuple[UUID, StoredToken]] = []
        for user_id in user_ids:
            found = self._policy.source.refresher.unsaved.get(user_id) or stored.get(user_id)
            found = found or NotConnected("no Spotify connection is stored for this user")
            answer = self._policy.from_row(user_id, found)
            if answer is not None:
                await self._answers.put(answer)
            elif isinstance(found, StoredToken):
                due.append((user_id, found))
        for one in due:
            await self._due.put(one)

    async def _stored(self, user_ids: list[UUID]) -> "dict[UUID, StoredToken | SpotconnError]":
        read_at = self._policy.clock()
        try:
            rows = await self._store.tokens.get_many(user_ids)
        except DatabaseUnavailable as error:
            return {user_id: renewed(error) for user_id in user_ids}
        return {
            user_id: row if isinstance(row, SpotconnError) else StoredToken.of(row, read_at)
            for user_id, row in rows.items()
        }

    async def _refresh(self, group: asyncio.TaskGroup) -> None:
        """Refresh one user after the other; one for whom Spotify asks to wait gets a task that does."""
        while True:
            user_id, stored = await self._due.get()
            until = await self._attempt(user_id, stored)
            if until is not None:
                await self._deferrals.acquire()
                group.create_task(self._deferred(user_id, stored, until), name="spotconn-many-deferred")

    async def _deferred(self, user_id: UUID, stored: StoredToken, until: float | None) -> None:
        while until is not None:
            await asyncio.sleep(until - loop_time())
            until = await self._attempt(user_id, stored)
        self._deferrals.release()

    async def _attempt(self, user_id: UUID, stored: StoredToken) -> float | None:
        """Answer for a user, or return when to ask Spotify again."""
        try:
            answer = await self._refreshed(user_id, stored)
        except Exception as error:
            self._fail(Failure(error))  # at once: the task group waits for the caller's iterator
            raise
        until = self._throttle.until(answer.found, loop_time())
        if until is None:
            await self._answers.put(answer)
            self._due.task_done()
        return until

    async def _refreshed(self, user_id: UUID, stored: StoredToken) -> Answer:
        async with self._turns:
            return await self._policy.refreshed(user_id, stored)
