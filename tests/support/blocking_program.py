"""A synchronous program with BlockingTokens, which forks, or ends in the middle of a call.

The arguments are a scenario, the DSN, the URL of Spotify and users.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import FrameType

import asyncpg

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager, TryLater
from spotconn.blocking import BlockingTokens

SCENARIO, DSN, URL, *USERS = sys.argv[1:]
THREADS, CHILDREN = 4, 4


@asynccontextmanager
async def opened() -> AsyncGenerator[TokenManager]:
    async with (
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=URL, api_url=URL) as accounts,
        ConnectionStore.open(DSN, min_size=1, max_size=2) as store,
        TokenManager(store, accounts) as manager,
    ):
        yield manager
    if SCENARIO == "lookup":
        await look_up()


TOKENS = BlockingTokens(opened)


def print_line(text: str) -> None:
    print(text, flush=True)


async def look_up() -> None:
    """Open a connection to a host that has a name, which asyncio looks up in an executor."""
    loop = asyncio.get_running_loop()
    await loop.getaddrinfo("localhost", 1)
    connection = await asyncpg.connect(DSN.replace("127.0.0.1", "localhost"))
    print_line(f"connected {await connection.fetchval('select 1')}")
    await connection.close()


def fork_amid_calls() -> None:
    """Fork while threads are in calls, and while another thread holds every lock there is."""
    watched, *others = USERS
    errors: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                TOKENS.get_valid_token(watched)
                TOKENS.status(watched)
            except Exception as error:  # noqa: BLE001  whatever it is, it is looked at
                errors.append(f"{type(error).__name__}: {error}")

    TOKENS.get_valid_token(watched)
    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    children = [_child(user, locked=bool(n % 2), ends=n) for n, user in enumerate(others[:CHILDREN])]
    found = [_answer(*child) for child in children]
    over.set()
    for thread in threads:
        thread.join()
    print_line(f"children {found}")
    print_line(f"parent {errors} {TOKENS.status(watched).connected}")


def _child(user: str, *, locked: bool, ends: int) -> tuple[int, int]:
    held, release = threading.Event(), threading.Event()

    def hold_locks() -> None:
        assert TOKENS._current is not None
        with TOKENS._lock, TOKENS._current._lock:
            held.set()
            release.wait(30)

    if locked:
        threading.Thread(target=hold_locks).start()
        held.wait(30)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _live(user, writing, ends)
    os.close(writing)
    release.set()
    return pid, reading


def _live(user: str, writing: int, ends: int) -> None:
    for who in (user, USERS[0]):
        token = TOKENS.get_valid_token(who)
        os.write(writing, f"{token[:2]} ".encode())
    os.close(writing)
    if ends % 3 == 0:
        os._exit(0)
    if ends % 3 == 1:
        TOKENS.close()
    sys.exit(0)


def _answer(pid: int, reading: int) -> str:
    with os.fdopen(reading) as lines:
        said = lines.read()
    return f"{said}{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"


def time_is_over() -> None:
    """End in good order with a refresh under way."""
    try:
        TOKENS.get_valid_token(USERS[0], timeout=0.5)
    except TryLater:
        sys.stdin.readline()
        print_line("ending")


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def interrupted() -> None:
    """Wait for a token until a signal comes."""
    signal.signal(signal.SIGTERM, _exit)
    try:
        TOKENS.get_valid_token(USERS[0])
    except KeyboardInterrupt:
        print_line("ending")
    except SystemExit:
        print_line("ending")
        raise


def daemon_thread() -> None:
    """End while a daemon thread is in a call."""
    threading.Thread(target=TOKENS.get_valid_token, args=USERS[:1], daemon=True).start()
    sys.stdin.readline()
    print_line("ending")
    sys.exit(0)


def lookup() -> None:
    TOKENS.status(USERS[0])


SCENARIOS: dict[str, Callable[[], None]] = {
    "fork": fork_amid_calls,
    "end": time_is_over,
    "SIGINT": interrupted,
    "SIGTERM": interrupted,
    "daemon thread": daemon_thread,
    "lookup": lookup,
}

if __name__ == "__main__":
    SCENARIOS[SCENARIO]()
