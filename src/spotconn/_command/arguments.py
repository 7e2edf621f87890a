"""Arguments and options that several commands have."""

import re
from collections.abc import Iterable
from typing import Annotated, TypeAlias
from uuid import UUID

import typer

from spotconn._user_ids import parse_user_id, user_id

User: TypeAlias = Annotated[
    str, typer.Argument(metavar="USER", help="A UUID, an integer id of --users, or text: before a text id.")
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print JSON for programs; lists print one object per line.")
]

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


def read_scopes(texts: Iterable[str] | None) -> list[str]:
    """Return the scopes that `--scope` names, several of them in one text with blanks between, as Spotify writes them.

    Raises:
        ValueError: a text holds none.
    """
    scopes = [text.split() for text in texts or ()]
    if not all(scopes):
        raise ValueError("--scope: expected the name of a scope, or several with blanks between")
    return [scope for several in scopes for scope in several]
