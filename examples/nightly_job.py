"""A nightly job that works for many users.

    python examples/nightly_job.py [USER_ID ...]

A few users at a time; one user's trouble does not stop the others, also where the work itself fails for one. After
SIGTERM or SIGINT no further user is begun, and those under way finish, in 20 seconds at most. The status is 0 if
nothing is left to do, else 1: run it again. What only an engineer can mend is the same for every user and ends the job
at once, except for users of a Spotify app that this process does not have.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import httpx

from demo_services import has_settings, print_line, run, service, simulated
from spotconn import AskUser, CallEngineer, OtherApp, TokenManager, TryLater
from web_api import get_json

CONCURRENCY = 8
PER_USER = 20
"""Seconds for the work of one user."""

Job = Callable[[UUID], Awaitable[object]]


@dataclass
class Report:
    """What has become of the users."""

    done: list[UUID] = field(default_factory=list[UUID])
    ask: list[UUID] = field(default_factory=list[UUID])
    later: list[UUID] = field(default_factory=list[UUID])
    other_app: list[UUID] = field(default_factory=list[UUID])
    failed: list[UUID] = field(default_factory=list[UUID])

    @property
    def count(self) -> int:
        """Of those that were begun."""
        return len(self.done) + len(self.ask) + len(self.later) + len(self.other_app) + len(self.failed)


async def for_each(user_ids: Iterable[UUID], job: Job, stop: asyncio.Event, *, per_user: float = PER_USER) -> Report:
    """Do a job for each user, for a few at a time, until `stop` is set.

    Raises:
        CallEngineer: nothing can be done for anybody.
    """
    report, waiting, fatal = Report(), iter(user_ids), list[CallEngineer]()

    async def work() -> None:
        while not stop.is_set() and not fatal and (user_id := next(waiting, None)):
            try:
                async with asyncio.timeout(per_user):
                    await job(user_id)
                report.done.append(user_id)
            except AskUser:
                report.ask.append(user_id)
            except (TryLater, TimeoutError):
                report.later.append(user_id)
            except OtherApp as error:
                print_line(f"{user_id}: {error}")
                report.other_app.append(user_id)
            except CallEngineer as error:
                fatal.append(error)
            except Exception as error:  # noqa: BLE001  one user's data must not end the job for the others
                # Its text may hold what is the user's; give the error itself to your crash reporter.
                print_line(f"{user_id}: {type(error).__name__}")
                report.failed.append(user_id)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(work())
    if fatal:
        raise fatal[0]
    return report


@contextmanager
def stopped_by(*signals: signal.Signals) -> Generator[asyncio.Event]:
    """An event that these signals set."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def tracks_of(tokens: TokenManager, http: httpx.AsyncClient) -> Job:
    """The job: note what a user listens to most."""

    async def note(user_id: UUID) -> None:
        await tokens.get_valid_token(user_id, scopes=["user-top-read"])
        page = await get_json(http, tokens.auth(user_id), "/v1/me/top/tracks", limit=1)
        tracks = page["items"]  # none of a user who is new at Spotify
        print_line(f"{user_id}: {tracks[0]['name'] if tracks else 'nothing yet'}")

    return note


@asynccontextmanager
async def opened(user_ids: list[str]) -> AsyncGenerator[tuple[TokenManager, list[UUID]]]:
    """The users of the arguments; or forty of a simulation with a slow Spotify, two of whom have to be asked."""
    if has_settings():
        async with service(user_ids) as given:
            yield given
    else:
        async with simulated(latency=(0.1, 0.2)) as simulation:
            users = [await simulation.connect(f"user{number}", ttl=-60) for number in range(1, 40)]
            simulation.spotify.revoke("user7")
            yield simulation.tokens, [*users, await simulation.sign_up("user40")]


async def main(user_ids: list[str]) -> int:
    with stopped_by(signal.SIGTERM, signal.SIGINT) as stop:
        async with (
            opened(user_ids) as (tokens, users),
            httpx.AsyncClient(base_url=tokens.accounts.api_url, timeout=10) as http,
        ):
            report = await for_each(users, tracks_of(tokens, http), stop)
    not_begun = len(users) - report.count
    print_line(
        f"{len(report.done)} done, {len(report.ask)} to ask, {len(report.later)} to try later, "
        f"{len(report.failed)} failed, {not_begun} not begun"
    )
    return 1 if report.later or report.other_app or report.failed or not_begun else 0


if __name__ == "__main__":
    sys.exit(run(main))
