"""Whether what this process reads decrypts: the evidence that its encryption keys are the right ones."""

import math
import time
from collections.abc import Callable
from uuid import UUID

from spotconn.errors import DecryptionError

RECENT = 300.0
"""Seconds for which a failure counts: a process without traffic reads nothing that could show otherwise."""
MOST_USERS = 1_000
"""Users remembered with each outcome; beyond, the oldest goes."""


class Decryptions:
    """The last outcome for each user, from the first failure on.

    A row is written by its user where browsers may write, and may be the cause of its failure. So the keys count as
    wrong only while the values of two users or more fail, and those of fewer users decrypt.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[UUID, None] = {}
        self._succeeded: dict[UUID, None] = {}
        self._last = -math.inf

    def __bool__(self) -> bool:
        """Return whether the last value of a user has failed."""
        return bool(self._failed)

    def fail(self, user_id: UUID) -> None:
        """Record that a value of a user does not decrypt."""
        self._last = self._clock()
        _move(user_id, self._succeeded, self._failed)

    def succeed(self, user_id: UUID) -> None:
        """Record that a value of a user decrypts; needed only while one has failed."""
        _move(user_id, self._failed, self._succeeded)

    def check(self) -> None:
        """Check that the values of most users decrypt.

        Raises:
            DecryptionError: they do not.
        """
        recent = self._clock() - self._last < RECENT
        if recent and len(self._failed) > max(1, len(self._succeeded)):
            raise DecryptionError(
                "the stored tokens of most users that were read lately do not decrypt: compare "
                "SPOTCONN_ENCRYPTION_KEYS with that of the other processes, and run spotconn doctor"
            )


def _move(user_id: UUID, source: dict[UUID, None], target: dict[UUID, None]) -> None:
    source.pop(user_id, None)
    target.pop(user_id, None)
    if len(target) >= MOST_USERS:
        del target[next(iter(target))]
    target[user_id] = None
