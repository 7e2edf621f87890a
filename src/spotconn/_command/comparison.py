"""The doctor's check that compares the catalog of the database with that of the shipped schema."""

from collections.abc import Mapping

from spotconn._command.differences import differences
from spotconn._command.facts import Fact, expected_facts, level_of, read_facts
from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._database.errors import APPLY_SCHEMA
from spotconn._database.statements import HIDES_ROWS

MOST_NAMED = 5
"""Differences that a finding names; of the others it gives the number."""

_BYPASSES = Fact("role", "service_role", "attribute", "BYPASSRLS")


async def check_catalog(probe: Probe) -> Finding:
    """Compare the table, the schema spotconn, their rights and what is around them with the expected facts."""
    found, expected = await read_facts(probe), expected_facts()
    if other := of_other_version("catalog", found, expected):
        return other
    if not await probe.value(f"select {HIDES_ROWS}"):
        found.add(_BYPASSES)  # or it has policies of its own, which are as good
    differing = differences(found, expected[level_of(found, expected)])
    if not differing:
        return Finding(state="ok", subject="catalog", text="tables, policies, rights and functions are as shipped")
    named = differing[:MOST_NAMED]
    texts = [one.text for one in named]
    if rest := len(differing) - len(named):
        texts.append(f"and {rest} more")
    return Finding(
        state=differing[0].state,
        subject="catalog",
        text="; ".join(texts),
        remedy="; ".join(dict.fromkeys(one.remedy for one in named)),
    )


def of_other_version(subject: str, found: set[Fact], expected: Mapping[str, set[Fact]]) -> Finding | None:
    """Compare the function that gives the version, in the catalog: calling it needs rights that may be missing."""
    bodies = [fact for fact in found if (fact.name, fact.property) == ("spotconn.schema_version()", "body")]
    if not bodies:
        text = "not compared: spotconn.schema_version() is missing"
        return Finding(state="fail", subject=subject, text=text, remedy=APPLY_SCHEMA)
    if any(bodies[0] in facts for facts in expected.values()):
        return None
    return Finding(state="skip", subject=subject, text="not compared: the schema is of another version")
