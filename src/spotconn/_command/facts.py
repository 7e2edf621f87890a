"""What a catalog must say so that the isolation of users holds: the facts found, and those of the shipped schema."""

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import NamedTuple

from spotconn._command.probe import Probe

LEVELS = ("open", "closed", "locked")
"""How much client roles may do with tokens: read and write their own; read them only; neither."""

# What the texts of expressions and constants depend on, until the transaction ends.
READ_AS = """
select pg_catalog.set_config(name, value, true) from (values
    ('search_path', 'pg_catalog, pg_temp'), ('TimeZone', 'UTC'), ('DateStyle', 'ISO, MDY'),
    ('IntervalStyle', 'postgres'), ('quote_all_identifiers', 'off')
) as setting (name, value)
"""


class Fact(NamedTuple):
    """A line of the catalog.

    Attributes:
        kind: of the object.
        name: of the object, quoted where it has to be.
        property: of the object.
        value: of that property; of a long text, the first 16 digits of its SHA-256.
    """

    kind: str
    name: str
    property: str
    value: str


async def read_facts(probe: Probe) -> set[Fact]:
    """Return the facts of a database, within a transaction."""
    await probe.rows(READ_AS)
    return {Fact(*row) for row in await probe.rows(_read("facts.sql"))}


def expected_facts() -> dict[str, set[Fact]]:
    """Return the facts of the shipped schema by level; levels that it does not offer are left out."""
    facts: dict[str, set[Fact]] = {}
    for line in _read("expected_facts.tsv").splitlines():
        levels, *parts = line.split("\t")
        for level in levels.split(","):
            facts.setdefault(level, set()).add(Fact(*parts))
    return facts


def level_of(found: Iterable[Fact], expected: Mapping[str, set[Fact]]) -> str:
    """Return the strictest level whose mark is there: the functions that it has and another level has not."""
    present = _functions(found)
    common = set[str].intersection(*(_functions(facts) for facts in expected.values()))
    levels = [level for level in LEVELS if level in expected]
    return next(level for level in reversed(levels) if _functions(expected[level]) - common <= present)


def _functions(facts: Iterable[Fact]) -> set[str]:
    return {fact.name for fact in facts if fact.kind == "function"}


def facts_file(facts: Mapping[str, set[Fact]]) -> str:
    """Return the text of the file of expected facts, from those of a fresh database at each level."""
    lines = {
        fact: ",".join(level for level in LEVELS if fact in facts.get(level, set()))
        for fact in set[Fact]().union(*facts.values())
    }
    return "".join("\t".join([lines[fact], *fact]) + "\n" for fact in sorted(lines))


def _read(name: str) -> str:
    return (files("spotconn._command") / name).read_text(encoding="utf-8")
