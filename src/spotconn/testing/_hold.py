"""Holds that delay the answers of the token endpoint."""

from collections.abc import Callable
from typing import Self

from spotconn.testing._shared_event import SharedEvent


class Hold:
    """Holds token answers until the end of its `with` block, or until `release`.

    Args:
        before: hold before the request is acted upon, rather than after.
        calls: how many calls to hold, while later ones pass; None holds all.
        forget: called when the block ends.
    """

    def __init__(self, *, before: bool, calls: int | None, forget: Callable[[], None]) -> None:
        self.before = before
        self._calls = calls
        self._forget = forget
        self._reached = SharedEvent()
        self._release = SharedEvent()

    def takes(self) -> bool:
        """Return whether to hold the call that has just arrived, and count it."""
        if self._calls is None:
            return True
        self._calls -= 1
        return self._calls >= 0

    async def reached(self) -> None:
        """Wait until a call is being held."""
        await self._reached.wait()

    def release(self) -> None:
        """Answer the held calls, and hold no later ones."""
        self._release.set()

    async def wait(self) -> None:
        """Wait for the release."""
        self._reached.set()
        await self._release.wait()

    def __enter__(self) -> Self:
        """Return this hold, which is already active."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the held calls, and remove the hold."""
        self.release()
        self._forget()
