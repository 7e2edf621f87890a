"""Whose rows a connection has returned."""

from spotconn._database.idle_sessions import Session
from spotconn.errors import RowSecurityError

_ANOTHER_USER = (
    "the database answered with the row of another user: a connection is used by two processes or event loops at once, "
    "or a pooler in between mixes up its sessions; the connection was closed, and nothing of that row was used"
)


def check_users(connection: Session, right: bool) -> None:  # noqa: FBT001  the condition is the point
    """Close a connection that has returned the row of another user than the one it was asked for.

    Args:
        connection: to close.
        right: whether the rows belong to the users asked for.

    Raises:
        RowSecurityError: they do not.
    """
    if not right:
        connection.terminate()
        raise RowSecurityError(_ANOTHER_USER)
