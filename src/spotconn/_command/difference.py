"""One difference from the expected catalog, and those that concern no single object of the schema."""

from typing import Literal, NamedTuple

from spotconn._command.facts import Fact


class Difference(NamedTuple):
    """A difference from the expected catalog.

    Attributes:
        state: "fail" where isolation may be broken, "warn" where it may be meant.
        text: in words.
        remedy: a command, or what to look at.
    """

    state: Literal["warn", "fail"]
    text: str
    remedy: str


def event_trigger(fact: Fact, _is_there: bool) -> Difference:  # noqa: FBT001
    """Return what is to be said of an event trigger that speaks of the schema."""
    text = f"the event trigger {fact.name} {fact.value}, in the sessions of all roles"
    return Difference("warn", text, f"unless it is meant: ALTER EVENT TRIGGER {fact.name} DISABLE")


def default_privilege(fact: Fact, _is_there: bool) -> Difference:  # noqa: FBT001
    """Return what is to be said of a default privilege in schema spotconn."""
    privilege, _, grantee = fact.value.rpartition(" to ")
    text = f"{fact.property} that {fact.name} makes in schema spotconn grant {privilege} to {grantee}"
    remedy = (
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {fact.name} IN SCHEMA spotconn "
        f"REVOKE {privilege} ON {fact.property} FROM {grantee}"
    )
    return Difference("warn", text, remedy)
