"""The SQL files that ship with the library."""

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from spotconn._database.users_table import UsersTable

SqlFile = Literal[
    "users_check.sql",
    "plain_postgres.sql",
    "schema.sql",
    "users.sql",
    "close_writes.sql",
    "lock_down.sql",
    "lock_down_undo.sql",
]

_PART = re.compile(
    r"--[^\n]*"  # a comment
    r"|'(?:[^']|'')*'"  # a text
    r'|"(?:[^"]|"")*"'  # a quoted name
    r"|(\$\w*\$).*?\1"  # a body
    r"|(;)"
    r"|[^-'\"$;]+|.",
    re.DOTALL,
)


def read_sql(name: SqlFile) -> str:
    """Return the text of a shipped SQL file; an editable install reads the file of its checkout."""
    packaged = files("spotconn") / "sql"
    folder: Traversable = packaged if packaged.is_dir() else Path(__file__).parents[3] / "sql"
    return (folder / name).read_text(encoding="utf-8")


def files_to_apply(
    *, plain_postgres: bool, users: str | None, close_writes: bool, lock_down: bool, undo_lock_down: bool
) -> list[SqlFile]:
    """Return the SQL files to apply, in their order.

    Raises:
        ValueError: `undo_lock_down` together with another, or `close_writes` with `lock_down`.
    """
    if close_writes and lock_down:
        raise ValueError("close_writes: lock_down closes the writes, too; choose one")
    if undo_lock_down:
        if plain_postgres or users is not None or close_writes or lock_down:
            raise ValueError("undo_lock_down: it stands alone")
        return ["lock_down_undo.sql"]
    chosen: dict[SqlFile, bool] = {
        "users_check.sql": users is not None,
        "plain_postgres.sql": plain_postgres,
        "schema.sql": True,
        "users.sql": users is not None,
        "close_writes.sql": close_writes,
        "lock_down.sql": lock_down,
    }
    return [name for name, is_chosen in chosen.items() if is_chosen]


def schema_sql(
    *,
    plain_postgres: bool = False,
    users: str | None = None,
    close_writes: bool = False,
    lock_down: bool = False,
    undo_lock_down: bool = False,
    transaction: bool = True,
) -> str:
    """Return the SQL that `spotconn schema` prints, to be applied as a whole.

    Args:
        plain_postgres: put before it what Supabase already has.
        users: add what ties your table of users to `auth.users`: the table with the column of the ids and its type,
            such as `public.users(id bigint)`. Names are quoted as in SQL.
        close_writes: add what lets the client roles read and delete rows, and write none.
        lock_down: add what takes the token columns away from the client roles, and their writes.
        undo_lock_down: return only the SQL that undoes either.
        transaction: put BEGIN and COMMIT around it. Without them it has to be applied within a transaction of yours.

    Raises:
        ValueError: `users` has another form, or parts are chosen that do not go together: `undo_lock_down` and another,
            `close_writes` and `lock_down`.
    """
    parts = _parts(
        plain_postgres=plain_postgres,
        users=users,
        close_writes=close_writes,
        lock_down=lock_down,
        undo_lock_down=undo_lock_down,
    )
    text = "\n".join(parts)
    return f"begin;\n\n{text}\ncommit;\n" if transaction else text


def schema_statements(
    *,
    plain_postgres: bool = False,
    users: str | None = None,
    close_writes: bool = False,
    lock_down: bool = False,
    undo_lock_down: bool = False,
) -> list[str]:
    """Return the statements of that SQL, for a migration tool whose driver takes one at a time.

    Run them in this order and within one transaction; there is no BEGIN and no COMMIT among them.

    Args:
        plain_postgres: put before them what Supabase already has.
        users: add what ties your table of users to `auth.users`, as in `schema_sql`.
        close_writes: add what lets the client roles read and delete rows, and write none.
        lock_down: add what takes the token columns away from the client roles, and their writes.
        undo_lock_down: return only what undoes either.

    Raises:
        ValueError: `users` has another form, or parts are chosen that do not go together: `undo_lock_down` and another,
            `close_writes` and `lock_down`.
    """
    parts = _parts(
        plain_postgres=plain_postgres,
        users=users,
        close_writes=close_writes,
        lock_down=lock_down,
        undo_lock_down=undo_lock_down,
    )
    return [statement for part in parts for statement in _statements(part)]


def _parts(*, users: str | None, **parts: bool) -> list[str]:
    settings = [] if users is None else [UsersTable.parse(users).settings()]
    return settings + [read_sql(name) for name in files_to_apply(users=users, **parts)]


def _statements(text: str) -> list[str]:
    """Split SQL at the semicolons that end a statement; comments between the statements are left out."""
    statements = [""]
    for part in _PART.finditer(text):
        if part[2]:
            statements.append("")
        elif not part[0].startswith("--"):
            statements[-1] += part[0]
    return [statement.strip() for statement in statements if statement.strip()]
