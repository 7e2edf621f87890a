"""The writes of one user, one at a time in this process.

A row that another transaction has locked holds up each write of it. Without this, as many requests of one user as the
pool has connections would hold up everybody.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager

from spotconn.errors import DatabaseUnavailable

_Turns = OrderedDict[asyncio.Future[None], None]


class WriteQueues:
    """Lets the writes of each user pass in the sequence in which they came. Those of different users do not meet."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, _Turns] = {}

    def __len__(self) -> int:
        """Return the number of users with a write under way."""
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, user: Hashable, *, seconds: float, ahead: bool = False) -> AsyncGenerator[None]:
        """Context manager: a block of which no other of this user is under way.

        Args:
            user: whose; any name that stands for one.
            seconds: to wait for it.
            ahead: whether it comes before those that wait already.

        Raises:
            DatabaseUnavailable: its turn did not come in time.
        """
        await self._acquire(user, seconds, ahead=ahead)
        try:
            yield
        finally:
            self._release(user)

    def close(self) -> None:
        """Let all go on that wait, to find that the pool is closed."""
        for turns in self._waiting.values():
            while turns:
                _pass_on(turns)

    async def _acquire(self, user: Hashable, seconds: float, *, ahead: bool) -> None:
        turns = self._waiting.get(user)
        if turns is None:
            self._waiting[user] = OrderedDict()
            return
        turn = asyncio.get_running_loop().create_future()
        turns[turn] = None
        if ahead:
            turns.move_to_end(turn, last=False)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            turns.pop(turn, None)
            if turn.done() and not turn.cancelled():  # its turn has come in the very step in which its time was over
                self._release(user)
            if not isinstance(error, TimeoutError):
                raise
        else:
            return
        text = f"other writes of this user have not ended within {seconds:g} s; try again later"
        raise DatabaseUnavailable(text, locked=True)

    def _release(self, user: Hashable) -> None:
        """Give the turn to the next that waits."""
        turns = self._waiting.get(user)
        while turns:
            if _pass_on(turns):
                return
        self._waiting.pop(user, None)


def _pass_on(turns: _Turns) -> bool:
    """Give the turn to the first that waits, and return whether it can take it: it may be cancelled."""
    turn, _ = turns.popitem(last=False)
    if turn.done():
        return False
    turn.set_result(None)
    return True
