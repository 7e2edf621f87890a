"""The user ids that a caller gives for a pass over many users."""

import sys
from collections.abc import AsyncIterable, Iterable
from uuid import UUID

from spotconn._tracebacks import Failure, scrub
from spotconn._user_ids import UserId, parse_user_id

UserIds = Iterable[UserId] | AsyncIterable[UserId]

_END = object()


class UserIdReader:
    """Takes the user ids of the caller as they are needed, and checks them one by one.

    Args:
        user_ids: of the caller.

    Attributes:
        error: what ended them early: a `Failure` of ours, or the exception of the caller's own iterator.

    Raises:
        ValueError: `user_ids` is no iterable of user ids.
    """

    def __init__(self, user_ids: UserIds) -> None:
        # A string is an iterable, too, of strings.
        if isinstance(user_ids, str) or not isinstance(user_ids, Iterable | AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance]  callers err
            raise ValueError("user_ids: expected an iterable of user ids")  # noqa: TRY004  bad input is a ValueError
        self._ids = aiter(user_ids) if isinstance(user_ids, AsyncIterable) else iter(user_ids)
        self._taken = 0
        self.error: Failure | Exception | None = None

    async def batch(self, size: int) -> list[UUID]:
        """Return the next ones, `size` at most, and none at the end or after an error."""
        batch: list[UUID] = []
        handled = sys.exception()
        try:
            while self.error is None and len(batch) < size and (user_id := await self._next()) is not None:
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
            self.error = Failure(ValueError(f"user_ids[{self._taken - 1}]: expected a UUID or an integer id"))
        return None
