"""The ids of users: UUIDs in every form, and what `user_id` makes of integers and texts."""

from typing import Any
from uuid import RFC_4122, UUID, uuid4

import pytest
from asyncpg.pgproto import pgproto
from hypothesis import given
from hypothesis import strategies as st

from spotconn import integer_id, user_id
from spotconn._user_ids import parse_user_id

USER = UUID("5b0c9d1e-0f0a-4a52-8a55-7f3f6f1c2d3e")
MAPPED = {
    0: "73706f74-0000-8000-8000-000000000000",
    42: "73706f74-0000-8000-8000-000000000042",
    -42: "73706f74-1000-8000-8000-000000000042",
    1234567890123456789: "73706f74-0001-8234-8567-890123456789",
    2**63 - 1: "73706f74-0009-8223-8372-036854775807",
    -(2**63): "73706f74-1009-8223-8372-036854775808",
}


class OtherUUID:
    """As uuid_utils.UUID: no subclass of Python's."""

    def __init__(self, value: UUID) -> None:
        self.bytes, self.int, self.hex = value.bytes, value.int, value.hex


@pytest.mark.parametrize(("value", "mapped"), [*MAPPED.items()])
def test_the_ids_stay_as_they_are(value: Any, mapped: str) -> None:
    """Stored connections hang on them: another form would give them to other users."""
    assert str(user_id(value)) == mapped


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_is_read_and_comes_back(integer: int) -> None:
    """Its decimal digits stand in the UUID, which is of version 8, and every function takes it as it is."""
    mapped = user_id(integer)
    assert mapped.hex.endswith(f"{abs(integer):015}"[-15:])
    assert (mapped.version, mapped.variant, integer_id(mapped)) == (8, RFC_4122, integer)
    assert parse_user_id(integer) == mapped


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_text_is_hashed(text: str) -> None:
    """Into another part of version 8 than integers, whatever it says."""
    mapped = user_id(text)
    assert (mapped.version, mapped.variant, mapped.hex[16], integer_id(mapped)) == (8, RFC_4122, "b", None)


def test_texts_that_look_alike_are_different_users() -> None:
    """A text of digits and the integer, a text of a UUID and the UUID, two normal forms, two spellings."""
    alike: list[Any] = [
        42,
        "42",
        " 42",
        "042",
        str(user_id(42)),
        str(USER),
        str(USER).upper(),
        USER,
        "é",
        "e\u0301",
        "",
    ]
    assert len({user_id(one) for one in alike}) == len(alike)


@pytest.mark.parametrize("text", [str(USER), str(USER).upper(), USER.hex, f"{{{USER}}}", USER.urn])
def test_a_user_id_is_read_from_text(text: str) -> None:
    """Every usual spelling of a UUID names the same user."""
    assert parse_user_id(text) == parse_user_id(USER) == USER


@pytest.mark.parametrize("value", [OtherUUID(USER), pgproto.UUID(str(USER))], ids=["other", "asyncpg"])
def test_uuids_of_other_classes_are_taken(value: Any) -> None:
    """Those of the driver, and objects with the octets of a UUID."""
    assert parse_user_id(value) == user_id(value) == USER


def test_uuids_of_uuid_utils_are_taken() -> None:
    """Their class is none of Python's."""
    uuid_utils = pytest.importorskip("uuid_utils", reason="not installed")
    assert parse_user_id(uuid_utils.UUID(str(USER))) == USER


@pytest.mark.parametrize(
    "wrong",
    ["", "marked-access", "5b0c9d1e-0f0a-4a52-8a55", "42", "user_2abc", None, 7.0, True, 2**63, b"marked", ["marked"]],
)
def test_a_wrong_user_id_is_named_and_not_repeated(wrong: Any) -> None:
    """What is no UUID is refused by the argument's name, with nothing of it in the error or behind it.

    A text that is none might be a mistyped one: it is not hashed in silence.
    """
    with pytest.raises(ValueError, match=r"^user_id: expected a UUID .* as text, int\(text\); of a text id") as raised:
        parse_user_id(wrong)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("wrong", [None, 7.0, True, False, 2**63, -(2**63) - 1, b"marked", ["marked"], "a\0", "\udcff"])
def test_what_has_no_user_id(wrong: Any) -> None:
    """Other types, integers that Postgres cannot hold, and texts that it cannot."""
    with pytest.raises(ValueError, match=r"^user_id: expected ") as raised:
        user_id(wrong)
    assert "marked" not in str(raised.value)


@given(st.uuids(version=4))
def test_a_random_uuid_is_no_integer(value: UUID) -> None:
    """No UUID of another version is one that this library makes."""
    assert integer_id(value) is None
    assert integer_id(uuid4()) is None
