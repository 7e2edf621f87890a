"""What this library decides by, noted on errors whose classes are the documented ones.

Logs, events and task queues show the name of an error's class, so no error of a private class is raised.
"""

from enum import Enum
from typing import TypeVar

_E = TypeVar("_E", bound=Exception)


class Mark(Enum):
    """What is noted, by the name of the attribute that holds it.

    Attributes:
        NOT_PROCESSED: Spotify did not act on the request, so a single-use code in it is still unspent.
        OF_ONE_APP: it concerns this app for every user, and no other app.
        OF_ONE_CALL: what was sent in this very call may be the cause, so it says nothing of other users yet.
    """

    NOT_PROCESSED = "_not_processed"
    OF_ONE_APP = "_of_one_app"
    OF_ONE_CALL = "_of_one_call"


def marked(error: _E, *marks: Mark) -> _E:
    """Note marks on an error and return it. Its copies have them, too."""
    vars(error).update((mark.value, True) for mark in marks)
    return error


def has_mark(error: BaseException | None, mark: Mark) -> bool:
    """Return whether a mark is noted on an error."""
    return error is not None and mark.value in vars(error)
