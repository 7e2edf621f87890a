"""The table of users that auth.users is to follow, as a caller names it."""

import re
from typing import NamedTuple

_NAME = r'[A-Za-z_][A-Za-z0-9_$]*|"(?:[^"\x00]|"")+"'
_USERS = re.compile(rf"\s*({_NAME})\s*\.\s*({_NAME})\s*\(\s*({_NAME})\s+([A-Za-z][A-Za-z0-9 ]*?)\s*\)\s*")
_TYPES = {
    "smallint": "smallint",
    "int2": "smallint",
    "integer": "integer",
    "int": "integer",
    "int4": "integer",
    "bigint": "bigint",
    "int8": "bigint",
    "text": "text",
    "varchar": "character varying",
    "character varying": "character varying",
    "uuid": "uuid",
}


class UsersTable(NamedTuple):
    """A table of users.

    Attributes:
        schema: of the table.
        table: its name.
        column: of the users' ids.
        type: of that column, as Postgres names it.
    """

    schema: str
    table: str
    column: str
    type: str

    @classmethod
    def parse(cls, text: str) -> "UsersTable":
        """Parse `public.users(id bigint)`. Names are quoted and folded as in SQL.

        Raises:
            ValueError: it has another form.
        """
        parts = _USERS.fullmatch(text)
        if parts is None or not _is_unicode(text):
            raise ValueError(
                "users: expected schema.table(column type), such as public.users(id bigint), with quotes around a name "
                "that has capitals or signs"
            )
        type_name = _TYPES.get(" ".join(parts[4].lower().split()))
        if type_name is None:
            raise ValueError("users: expected a column of the type smallint, integer, bigint, text, varchar or uuid")
        return cls(_identifier(parts[1]), _identifier(parts[2]), _identifier(parts[3]), type_name)

    def settings(self) -> str:
        """Return the SQL that names the table to users_check.sql and users.sql."""
        values = {"schema": self.schema, "table": self.table, "column": self.column, "type": self.type}
        return "".join(f"set local spotconn.users_{name} = {_literal(value)};\n" for name, value in values.items())


def _identifier(text: str) -> str:
    return text[1:-1].replace('""', '"') if text.startswith('"') else text.lower()


def _literal(text: str) -> str:
    """Quote a text for every setting of standard_conforming_strings."""
    quoted = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{quoted}'" if "\\" in text else f"'{quoted}'"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
