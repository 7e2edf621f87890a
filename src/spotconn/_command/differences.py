"""What differs between the catalog of a database and the expected one: in words, how grave, and what mends it."""

import re
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import Literal

from spotconn._command.difference import Difference, default_privilege, event_trigger
from spotconn._command.facts import Fact
from spotconn._command.same_form import TABLE, without_same_form
from spotconn._database.errors import APPLY_SCHEMA

CLIENTS = {"PUBLIC", "anon", "authenticated"}
"""Roles of the senders of requests, as the rights of a table name them."""

_OWN_ROW = (
    "(( SELECT auth.uid() AS uid) = user_id)",
    "(user_id = ( SELECT auth.uid() AS uid))",
    "(auth.uid() = user_id)",
    "(user_id = auth.uid())",
)
_PLAIN_DEFAULT = re.compile(r"default ([^(]*|now\(\)|gen_random_uuid\(\)|timezone\('utc'::text, now\(\)\))")
"""A default that runs no code of anybody's."""
_FOREIGN = re.compile(r"""\.[\w"$]+\(|OPERATOR\(""")
"""What calls a function or an operator that is not Postgres' own."""
_LONGEST = 200
"""Characters of a name or an expression that a text shows."""
_COMPARE = f"{APPLY_SCHEMA}; compare what that leaves with what `spotconn schema` prints"
_UID = "let auth.uid() return the sub of request.jwt.claims alone, as `spotconn schema --plain-postgres` prints it"
# The gravest first where not all can be named.
_ORDER = (
    *("role", "setting", "schema", "policy", "table", "view", "rule", "column", "trigger", "definer", "publication"),
    *("function", "constraint", "index", "event trigger", "default"),
)


def differences(found: Collection[Fact], expected: Collection[Fact]) -> list[Difference]:
    """Return the differences, the gravest first."""
    found, expected = without_same_form(found, expected)
    of_interest = found ^ expected
    known = {fact[:2] for fact in expected}
    present = {fact[:2] for fact in found}
    differing = list[Difference]()
    order = sorted(of_interest, key=lambda fact: (_ORDER.index(fact.kind), fact))
    for key, group in groupby(order, key=lambda fact: fact[:2]):
        facts = list(group)
        added = [fact for fact in facts if fact in found]
        if key[0] in _SENTENCES:
            differing += [_SENTENCES[fact.kind](fact, fact in found) for fact in facts]
        elif key not in known:
            differing += _added(facts)
        elif key not in present:
            differing.append(_missing(facts[0]))
        else:
            differing += _altered(added, [fact for fact in facts if fact not in found])
    return sorted(differing, key=lambda one: one.state != "fail")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _added(facts: list[Fact]) -> Iterator[Difference]:
    """Yield what is to be said of an object that the schema does not have."""
    fact = facts[0]
    values = {one.property: one.value for one in facts}
    form, text = values.get("form", ""), f"{fact.kind} {_short(fact.name)} was added"
    open_to = CLIENTS & {one.value.rpartition(" to ")[2] for one in facts if one.property == "right"}
    if (refusing := _refusing(fact, form, text, has_default="expression" in values)) is not None:
        yield refusing
        return
    match fact.kind:
        case "policy":
            yield from _added_policy(fact, form, text, binds="binds" in values)
        case "rule":
            yield Difference("fail", f"{text}: {_short(form)}", f"DROP RULE {fact.name}")
        case "trigger":
            yield Difference("warn", f"{text}: {_short(form)}", f"unless it is meant: DROP TRIGGER {fact.name}")
        case "column" if not open_to and _PLAIN_DEFAULT.fullmatch(values.get("expression", "default ")):
            return  # the project's own
        case "index" | "constraint" if _is_plain(fact.kind, form):
            return
        case "index" | "column" | "constraint":
            yield Difference("warn", f"{text}: {_short(values.get('expression', form))}", "see that it is meant")
        case _:
            if open_to:
                text += f", and {', '.join(sorted(open_to))} may use it"
            kind = "function" if fact.kind == "function" else form.removeprefix("unlogged ").partition(" with")[0]
            state: Literal["warn", "fail"] = "fail" if open_to else "warn"
            yield Difference(state, text, _unless_meant(state, f"DROP {kind.upper()} {fact.name}"))


def _added_policy(fact: Fact, form: str, text: str, *, binds: bool) -> Iterator[Difference]:
    if _grantees(form) == {"service_role"}:
        return  # it says nothing of a role that no policy binds
    if binds:
        remedy = f"ALTER POLICY {fact.name} TO authenticated, which spares the library, or DROP POLICY {fact.name}"
        yield Difference("fail", f"{text}, and keeps rows from the library: {_short(form)}", remedy)
        return
    state: Literal["warn", "fail"] = "fail" if _reaches_others(form) else "warn"
    yield Difference(state, f"{text}: {_short(form)}", _unless_meant(state, f"DROP POLICY {fact.name}"))


def _is_plain(kind: str, form: str) -> bool:
    """Whether an added index or constraint needs no word: it calls nothing, or its index is named."""
    return form.startswith("UNIQUE") if kind == "constraint" else not _FOREIGN.search(form)


def _refusing(fact: Fact, form: str, text: str, *, has_default: bool) -> Difference | None:
    """Return what is to be said of a part of the documented table that refuses connections."""
    if fact.kind == "index" and " UNIQUE " in form:
        text += f": {_short(form)}: it refuses a second user with the same, such as one Spotify account for two"
        return Difference("warn", text, "unless it is meant, drop it, or the constraint that it belongs to")
    table, _, column = fact.name.rpartition(".")
    if (fact.kind, table, has_default) == ("column", TABLE, False) and form.endswith(" not null"):
        text += f": {_short(form)} without a default, so that no user can be connected"
        return Difference("fail", text, f"ALTER TABLE {TABLE} ALTER COLUMN {column} DROP NOT NULL")
    return None


def _reaches_others(form: str) -> bool:
    """Whether a policy, in words, may let a client or the library reach rows of other users."""
    head, *expressions = form.replace(" with check ", " using ").split(" using ")
    return (
        head.startswith("permissive")
        and not {*CLIENTS, "spotconn"}.isdisjoint(_grantees(form))
        and not all(_is_of_own_row(expression) for expression in expressions)
    )


def _grantees(form: str) -> set[str]:
    return set(re.split(" using | with check ", form)[0].rpartition(" to ")[2].split(", "))


def _is_of_own_row(expression: str) -> bool:
    """Whether an expression compares the user with the row's, and at most narrows that."""
    return expression in _OWN_ROW or expression.startswith(tuple(f"({own} AND " for own in _OWN_ROW))


def _missing(fact: Fact) -> Difference:
    text = f"{fact.kind} {_short(fact.name)} is missing"
    if fact.kind == "trigger" and fact.name.startswith("spotconn_notify"):
        return Difference("warn", text, f"unless that is meant: {APPLY_SCHEMA}")
    if fact.name == "auth.uid()":
        return Difference("fail", text, _UID)
    if fact.kind == "constraint" and fact.name.endswith(f" on {TABLE}"):
        return Difference("fail", f"{text}: {_short(fact.value)}", APPLY_SCHEMA)
    if fact.kind in {"column", "constraint", "index"}:
        is_key = fact.value.startswith(("PRIMARY KEY", "UNIQUE", "FOREIGN KEY"))
        return Difference("fail" if fact.kind == "column" or is_key else "warn", text, _COMPARE)
    return Difference("fail", text, APPLY_SCHEMA)


def _altered(added: list[Fact], missing: list[Fact]) -> Iterator[Difference]:
    """Yield what differs about an object that is there."""
    owner = next((fact.value for fact in added if fact.property == "owner"), None)
    for fact in missing:
        # What an owner may do stands nowhere.
        if fact.property == "right" and fact.value.rpartition(" to ")[2] != owner:
            yield _missing_right(fact)
    now = {fact.property: fact for fact in added if fact.property not in {"right", "children", "parents"}}
    for fact in added:
        if fact.property == "right":
            if not _is_of_overview(fact):
                yield _added_right(fact)
        elif fact.property == "owner":
            yield _owner(fact)
        elif fact.property in {"children", "parents"}:
            child, parent = (fact.value, fact.name) if fact.property == "children" else (fact.name, fact.value)
            text = f"{child} inherits from {parent}: who reads the one reads rows of the other by its own policies"
            yield Difference("fail", text, f"ALTER TABLE {child} NO INHERIT {parent}")
    changed = {fact.property for fact in [*added, *missing]} - {"right", "owner", "children", "parents"}
    if changed:
        yield _changed((added or missing)[0], changed, now)


def _changed(fact: Fact, changed: set[str], now: dict[str, Fact]) -> Difference:
    text = f"{fact.kind} {_short(fact.name)} was altered"
    shown = [f"{name}: {_short(now[name].value)}" for name in ("row security", "form", "expression") if name in now]
    if shown:
        text += f" ({', '.join(shown)})"
    if fact.name == "auth.uid()":
        foreign = "source" in changed or ("form" in now and not now["form"].value.startswith(("sql ", "plpgsql ")))
        text += ": the policies ask it who a user is" + (", and it reads more than the claims" if foreign else "")
        return Difference("fail" if foreign else "warn", text, _UID)
    if fact.kind in {"column", "constraint", "index"}:
        return Difference("warn" if " public." in f" {fact.name.rpartition(' on ')[2]}" else "fail", text, _COMPARE)
    if "form" in now and now["form"].value.startswith("unlogged"):
        return Difference("fail", text, f"ALTER TABLE {fact.name} SET LOGGED")
    if changed == {"row security"} and "row security" in now and now["row security"].value == "on, forced":
        return Difference("warn", text, f"unless it is meant: ALTER TABLE {fact.name} NO FORCE ROW LEVEL SECURITY")
    if fact.kind == "trigger" and fact.name.startswith("spotconn_notify"):
        return Difference("warn", text, f"unless that is meant: {APPLY_SCHEMA}")
    return Difference("fail", text, APPLY_SCHEMA)


def _right(fact: Fact, verb: str) -> tuple[str, str]:
    """Return the grantee of a right, and the right in words."""
    privilege, _, grantee = fact.value.rpartition(" to ")
    what = f"have {privilege} on schema" if fact.kind == "schema" else privilege
    return grantee, f"{grantee} {verb} {what} {_short(fact.name)}"


def _missing_right(fact: Fact) -> Difference:
    grantee, text = _right(fact, "may not")
    return Difference("warn" if grantee in CLIENTS else "fail", text, APPLY_SCHEMA)


def _is_of_overview(fact: Fact) -> bool:
    """Whether a right is one that the guide gives a role of the project's own, to read connections without tokens."""
    privilege, _, grantee = fact.value.rpartition(" to ")
    return (fact.name, privilege) in {("spotconn.connection_overview", "SELECT"), ("spotconn", "USAGE")} and (
        grantee not in {*CLIENTS, "authenticator", "spotconn"}
    )


def _added_right(fact: Fact) -> Difference:
    grantee, text = _right(fact, "may")
    state: Literal["warn", "fail"] = "fail" if grantee in {*CLIENTS, "spotconn"} else "warn"
    if grantee in CLIENTS and fact.kind in {"table", "function", "column"}:
        return Difference(state, text, APPLY_SCHEMA)
    privilege = fact.value.rpartition(" to ")[0]
    column = ""
    name = fact.name
    if fact.kind == "column":
        name, _, column = name.rpartition(".")
        column = f" ({column})"
    on = "TABLE" if fact.kind == "column" else fact.kind.upper()
    remedy = f"REVOKE {privilege}{column} ON {on} {name} FROM {grantee}"
    return Difference(state, text, _unless_meant(state, remedy))


def _owner(fact: Fact) -> Difference:
    text = f"{fact.kind} {_short(fact.name)} belongs to {fact.value}, who may read and change all of it"
    if fact.name.startswith("auth"):
        return Difference("warn", text, "see that this role is the project's own administrator")
    remedy = (
        f"as the role that applies the schema (if it is no superuser, first GRANT {fact.value} TO CURRENT_USER): "
        f"ALTER {fact.kind.upper()} {fact.name} OWNER TO CURRENT_USER; then spotconn schema --apply"
    )
    if fact.value not in {*CLIENTS, "authenticator", "service_role", "spotconn"}:
        remedy += f"; where {fact.value} is meant to own it: GRANT spotconn TO {fact.value} WITH ADMIN OPTION"
    return Difference("fail", text, remedy)


def _role(fact: Fact, is_there: bool) -> Difference:  # noqa: FBT001
    if fact.property == "member":
        state: Literal["warn", "fail"] = "fail" if fact.name in {*CLIENTS, "spotconn"} else "warn"
        remedy = f"REVOKE {fact.value} FROM {fact.name}, or from the role between the two"
        text = f"{fact.name} is a member of {fact.value}"
        return Difference(state, text, _unless_meant(state, remedy))
    if not is_there:
        return Difference("fail", f"the role {fact.name} lacks {fact.value}, and rows are hidden from it", "see grants")
    remedy = "see isolation" if fact.name == "spotconn" else f"ALTER ROLE {fact.name} NO{fact.value}"
    state = "warn" if fact.name == "service_role" else "fail"
    return Difference(state, f"the role {fact.name} has {fact.value}", remedy)


def _setting(fact: Fact, _is_there: bool) -> Difference:  # noqa: FBT001
    state: Literal["warn", "fail"] = "fail" if "request." in fact.property.lower() else "warn"
    text = f"{fact.name} sets {_short(fact.property)} for its sessions"
    return Difference(state, text, f"ALTER {fact.name} RESET {fact.property}")


def _publication(fact: Fact, _is_there: bool) -> Difference:  # noqa: FBT001
    text = f"the publication {fact.name} sends the rows of {fact.value} to its subscribers"
    remedy = f"unless it is meant: ALTER PUBLICATION {fact.name} DROP TABLE {fact.value}, or make it without that"
    return Difference("warn", text, remedy)


def _view(fact: Fact, _is_there: bool) -> Difference:  # noqa: FBT001
    by_user = fact.property != "readers"
    state: Literal["warn", "fail"] = "warn" if by_user or fact.value == "no client" else "fail"
    text = f"the view {_short(fact.name)} reads rows of all users past the policies ({fact.value} may read it)"
    if by_user:
        text += ", and asks auth.uid() which it shows"
    remedy = f"ALTER VIEW {fact.name} SET (security_invoker = true); a materialized view: DROP it"
    return Difference(state, text, _unless_meant(state, remedy))


def _definer(fact: Fact, _is_there: bool) -> Difference:  # noqa: FBT001
    text = f"the function {_short(fact.name)} is SECURITY DEFINER and speaks of the table; {fact.value} may call it"
    return Difference("warn", text, "see that it answers for auth.uid() alone, or make it SECURITY INVOKER")


_SENTENCES = {
    "role": _role,
    "setting": _setting,
    "publication": _publication,
    "view": _view,
    "definer": _definer,
    "event trigger": event_trigger,
    "default": default_privilege,
}
"""By the kind of facts that each stand for themselves."""


def _unless_meant(state: Literal["warn", "fail"], remedy: str) -> str:
    """Return a remedy that leaves what is no fault to the operator."""
    return remedy if state == "fail" else f"unless it is meant: {remedy}"
