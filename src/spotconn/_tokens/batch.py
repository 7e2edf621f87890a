"""Tokens for many users: read in batches, refreshed a bounded number at a time, handed out as they come.

However many users there are, a pass holds no more than two batches of them, and one task for each refresh that may
run at once. All its tasks end when its iterator ends, for whatever reason, and when the manager closes.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from spotconn._affinity import Affinity
from spotconn._spotify.authorization import AppRefused
from spotconn._tokens.apps import Apps
from spotconn._tokens.arguments import Times
from spotconn._tokens.freshness import Freshness, freshness_of
from spotconn._tokens.source import ConnectionSource
from spotconn._tokens.stored_token import StoredToken
from spotconn._tracebacks import Failure, renewed, scrub
from spotconn.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    DecryptionError,
    NotConnected,
    OtherApp,
    RowSecurityError,
    SchemaMismatch,
    SpotconnError,
)
from spotconn.models import parse_user_id
from spotconn.overview import TokensProgress
from spotconn.store import ConnectionStore

_log = logging.getLogger("spotconn")

BATCH = 200
"""Users read in one statement; also answers that wait for the caller, and answers from one `progress` to the next."""
STOP_TIMEOUT = 10.0
"""Seconds that what is under way has to end, once it is cancelled."""

UserIds = Iterable[UUID | str] | AsyncIterable[UUID | str]
Answer = tuple[UUID, str | SpotconnError]
Answers = AsyncGenerator[Answer, None]
Progress = Callable[[TokensProgress], object]

# What concerns all users alike; a DecryptionError may be of one row.
_FOR_ALL = (ConfigurationError, SchemaMismatch, RowSecurityError)
_END = object()


@dataclass(frozen=True)
class Policy:
    """How one user is served.

    Attributes:
        source: gets another token than a stored one that is due.
        apps: of the manager: a fault of one of several does not concern all users.
        times: of the manager.
        clock: gives seconds since the epoch.
    """

    source: ConnectionSource
    apps: Apps
    times: Times
    clock: Callable[[], float]

    def from_row(self, stored: StoredToken) -> str | None:
        """Return the answer from the row alone, or None if a refresh is due."""
        return stored.access_token if self._freshness(stored) is Freshness.FRESH else None

    async def refreshed(self, user_id: UUID, stored: StoredToken) -> str | SpotconnError:
        """Return the answer after a refresh; while the stored token is good, a failure is no answer.

        Raises:
            ConfigurationError, SchemaMismatch, RowSecurityError: they would be the answer for every user.
        """
        try:
            newer = await self.source.renew(user_id, stored)
        except SpotconnError as error:
            if isinstance(error, _FOR_ALL) and not self._is_of_one_app(error):
                raise
            failure = renewed(error)
        else:
            return newer.access_token
        return failure if self._freshness(stored) is Freshness.EXPIRED else stored.access_token

    def _is_of_one_app(self, error: SpotconnError) -> bool:
        return isinstance(error, OtherApp) or (len(self.apps.accounts) > 1 and isinstance(error, AppRefused))

    def _freshness(self, stored: StoredToken) -> Freshness:
        return freshness_of(stored.ends - self.clock(), window=self.times.window, margin=self.times.margin)


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
        self._running: set[asyncio.Task[Any]] = set()

    def answers(self, user_ids: UserIds, *, concurrency: int, progress: Progress | None) -> Answers:
        """Yield what `TokenManager.get_valid_tokens` does."""
        self._affinity.check()
        if concurrency < 1:
            raise ValueError("concurrency: expected 1 or more")
        # A string is an iterable, too, of strings.
        if isinstance(user_ids, str) or not isinstance(user_ids, Iterable | AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance]  callers err
            raise ValueError("user_ids: expected an iterable of user ids")  # noqa: TRY004  bad input is a ValueError
        one = _Run(self._store, self._policy, _UserIds(user_ids), concurrency)
        return self._answers_of(one, _Counter(progress))

    def cancel(self) -> set[asyncio.Task[Any]]:
        """Begin to end all passes; the tasks to wait for."""
        for task in self._running:
            task.cancel()
        return set(self._running)

    async def _answers_of(self, one: "_Run", counter: "_Counter") -> Answers:
        self._affinity.check()
        task = one.start()
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            while await one.next():
                yield one.answer
                counter.count(failed=isinstance(one.answer[1], SpotconnError))
            if task.cancelled():
                self._affinity.check()  # it is the manager that has cancelled it
            if failure := task.result():
                raise failure.renewed() if isinstance(failure, Failure) else failure
            counter.report()
        finally:
            await one.stop()


class _Counter:
    """Counts the answers that the caller has done with, and tells from time to time."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = self._failed = 0

    def count(self, *, failed: bool) -> None:
        self._done += 1
        self._failed += failed
        if self._done % BATCH == 0:
            self.report()

    def report(self) -> None:
        if self._progress is not None:
            self._progress(TokensProgress(done=self._done, failed=self._failed))


class _UserIds:
    """The user ids of the caller, taken as they are needed and checked one by one.

    Attributes:
        error: what ended them early: a `Failure` of ours, or the exception of the caller's own iterator.
    """

    def __init__(self, user_ids: UserIds) -> None:
        self._ids = aiter(user_ids) if isinstance(user_ids, AsyncIterable) else iter(user_ids)
        self._taken = 0
        self.error: Failure | Exception | None = None

    async def batch(self) -> list[UUID]:
        """Return the next ones, and none at the end or after an error."""
        batch: list[UUID] = []
        handled = sys.exception()
        try:
            while self.error is None and len(batch) < BATCH and (user_id := await self._next()) is not None:
                batch.append(user_id)
        except Exception as error:  # noqa: BLE001  it is raised once those before it have their answers
            scrub(error, handled)
            self.error = error
        return batch

    async def _next(self) -> UUID | None:
        ids = self._ids
        user_id = next(ids, _END) if not isinstance(ids, AsyncIterable) else await anext(ids, _END)
        if user_id is _END:
            return None
        self._taken += 1
        try:
            return parse_user_id(user_id)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        except ValueError:
            self.error = Failure(ValueError(f"user_ids[{self._taken - 1}]: expected a UUID"))
        return None


class _Run:
    """One task that reads the batches, with its own tasks that refresh.

    Attributes:
        answer: the one that `next` has found.
    """

    answer: Answer
    _task: asyncio.Task[Failure | Exception | None]

    def __init__(self, store: ConnectionStore, policy: Policy, user_ids: _UserIds, concurrency: int) -> None:
        self._store = store
        self._policy = policy
        self._user_ids = user_ids
        self._concurrency = concurrency
        self._due: asyncio.Queue[tuple[UUID, StoredToken]] = asyncio.Queue(concurrency)
        self._answers: asyncio.Queue[Answer | None] = asyncio.Queue(BATCH)

    def start(self) -> asyncio.Task[Failure | Exception | None]:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="spotconn-many")
        self._task.add_done_callback(self._ended)
        return self._task

    async def next(self) -> bool:
        """Wait for the next answer; False once there will be none."""
        while not (self._task.done() and self._answers.empty()):
            found = await self._answers.get()
            if found is not None:
                self.answer = found
                return True
        return False

    async def stop(self) -> None:
        """End everything."""
        self._task.cancel()
        _, late = await asyncio.wait([self._task], timeout=STOP_TIMEOUT)
        if late:
            _log.error("the iterator of user ids given to get_valid_tokens does not end when it is cancelled")

    def _ended(self, _task: object) -> None:
        if not self._answers.full():
            self._answers.put_nowait(None)  # who waits for an answer looks up

    async def _run(self) -> Failure | Exception | None:
        """Do it all; what has ended it early is returned, not raised."""
        try:
            async with asyncio.TaskGroup() as group:
                workers = [
                    group.create_task(self._refresh(), name="spotconn-many-refresh") for _ in range(self._concurrency)
                ]
                while batch := await self._user_ids.batch():
                    await self._read(batch)
                await self._due.join()
                for worker in workers:
                    worker.cancel()
        except ExceptionGroup as failed:
            return Failure(failed.exceptions[0])
        return self._user_ids.error

    async def _read(self, user_ids: list[UUID]) -> None:
        """Answer what a batch can answer, then hand on what is to be refreshed."""
        stored = await self._stored(user_ids)
        due: list[tuple[UUID, StoredToken]] = []
        for user_id in user_ids:
            found = self._policy.source.refresher.unsaved.get(user_id) or stored.get(user_id)
            found = found or NotConnected("no Spotify connection is stored for this user")
            answer = self._policy.from_row(found) if isinstance(found, StoredToken) else found
            if answer is not None:
                await self._answers.put((user_id, answer))
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
            user_id: row if isinstance(row, DecryptionError) else StoredToken.of(row, read_at)
            for user_id, row in rows.items()
        }

    async def _refresh(self) -> None:
        while True:
            user_id, stored = await self._due.get()
            await self._answers.put((user_id, await self._policy.refreshed(user_id, stored)))
            self._due.task_done()
