"""The values of a refresh: what is to be replaced, and what came in its place."""

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from spotconn._stopwatch import Stopwatch
from spotconn._tokens.stored_token import StoredToken


class Replacement(NamedTuple):
    """What came in place of a token found wanting.

    Attributes:
        token: another one; the same if it was granted so lately that there is no better one.
        best: whether there is no better one to be had now.
        retry_after: seconds until the same token may be replaced.
    """

    token: StoredToken
    best: bool
    retry_after: float | None = None


@dataclass(eq=False, repr=False, slots=True)
class Attempt:
    """One try to replace a token of a user.

    Attributes:
        user_id: whose.
        wanting: the token found wanting.
        begun: runs since the call began.
        waited: seconds slept while another process refreshed.
        restored: how often an earlier row was mended.
    """

    user_id: UUID
    wanting: StoredToken
    begun: Stopwatch
    waited: float = 0.0
    restored: int = 0
