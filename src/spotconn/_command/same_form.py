"""Constraints and indexes of the documented table that differ from the shipped ones in name alone."""

import re
from collections.abc import Collection

from spotconn._command.facts import Fact

TABLE = "public.spotify_connections"

_INDEX_NAME = re.compile(r'INDEX (?:"(?:[^"]|"")*"|\S+) ON')


def without_same_form(found: Collection[Fact], expected: Collection[Fact]) -> tuple[set[Fact], set[Fact]]:
    """Return the facts without those that stand under another name: who makes a table names its keys.

    A primary key of a column serves as a unique one, and so does an index that is of no constraint.

    Args:
        found: of the database.
        expected: of the shipped schema.
    """
    more, missing = set(found) - set(expected), set(expected) - set(found)
    same = set[Fact]()
    added = {form: fact for fact in sorted(more) if (form := _form(fact)) is not None}
    for fact in sorted(missing):
        form = _form(fact)
        if form is not None and (other := added.pop(form, None)) is not None:
            same |= {fact, other}
        elif _is_indexed(fact, found):
            same.add(fact)
    return set(found) - same, set(expected) - same


def _is_indexed(fact: Fact, found: Collection[Fact]) -> bool:
    form = _form(fact)
    if form is None or fact.kind != "constraint" or not form[1].startswith("UNIQUE"):
        return False
    columns = form[1].removeprefix("UNIQUE")
    index = ("index", f"of columns: CREATE UNIQUE INDEX ON {TABLE} USING btree{columns}")
    return any(_form(other) == index for other in found)


def _form(fact: Fact) -> tuple[str, str] | None:
    if fact.kind not in {"constraint", "index"} or not fact.name.endswith(f" on {TABLE}"):
        return None
    return fact.kind, _INDEX_NAME.sub("INDEX ON", fact.value).replace("PRIMARY KEY", "UNIQUE")
