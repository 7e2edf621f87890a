"""What the commands do for one user: `status`, `token`, `disconnect` and `move`."""

import os
import re
from uuid import UUID

from spotconn._command.console import open_admin, open_store
from spotconn._settings import read_retired_client_ids
from spotconn._user_ids import parse_user_id, user_id
from spotconn.errors import NotConnected
from spotconn.manager import TokenManager
from spotconn.overview import ConnectionStatus

USER_HELP = "A UUID, an integer id of --users, or text: before a text id."

_INTEGER = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_TEXT = "text:"


def read_user(text: str, name: str = "USER") -> UUID:
    """Return the user that an argument names: `3f2b0a52-…`, `42` or `text:user_2abc`.

    A text id needs the word before it: without it each mistyped UUID would be the id of somebody, who is not connected.

    Raises:
        ValueError: it has none of these forms; the text does not repeat it.
    """
    try:
        if text.startswith(_TEXT):
            return user_id(text.removeprefix(_TEXT))
        return parse_user_id(int(text) if _INTEGER.fullmatch(text) else text)
    except ValueError:
        pass
    raise ValueError(f"{name}: expected a UUID, an integer of 64 bits, or text: and a text id (text:user_2abc)")


async def status_of(user: str) -> ConnectionStatus:
    """Return a user's connection without its tokens."""
    found, retired = read_user(user), read_retired_client_ids(os.environ)
    async with open_store() as store:
        try:
            return ConnectionStatus.of(await store.get(found), retired_client_ids=retired)
        except NotConnected:
            return ConnectionStatus(connected=False)


async def token_of(user: str, scopes: list[str], min_ttl: float | None) -> str:
    """Return a valid access token."""
    found = read_user(user)
    async with TokenManager.from_env() as tokens:
        return await tokens.get_valid_token(found, scopes=scopes, min_ttl=min_ttl)


async def disconnect_user(user: str) -> bool:
    """Delete a user's connection, and return whether there was one."""
    found = read_user(user)
    async with open_store() as store:
        return await store.delete(found)


async def move_connection(from_user: str, to_user: str) -> bool:
    """Move a connection to another user, and return whether there was one."""
    former, latter = read_user(from_user, "FROM"), read_user(to_user, "TO")
    async with open_admin() as admin:
        return await admin.move(former, latter)
