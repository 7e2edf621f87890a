"""The ids of users: UUIDs of `auth.users`, and what other tables of users have instead."""

import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol
from uuid import UUID


class UuidLike(Protocol):
    """A UUID of another class, such as `uuid_utils.UUID`."""

    @property
    def bytes(self) -> bytes:
        """The sixteen octets."""
        ...


UserId = UUID | UuidLike | str | int
"""The id of a user: a UUID or its text, or the integer that `user_id` makes a UUID of."""

_INTEGERS = range(-(2**63), 2**63)
_NAMESPACE = bytes.fromhex("0d6f7c1b5c9e4e0f9b7a51f2c8a4d3e6")
_OF_INTEGER = re.compile(r"73706f74([01])00(\d)8(\d{3})8(\d{15})", re.ASCII)


def user_id(value: UserId) -> UUID:
    """Return the id in `auth.users` of a user whose own id is an integer, a text or a UUID.

    The function `spotconn.user_id` of the schema gives the same. The UUIDs are of version 8 (RFC 9562), so they never
    meet a random one, and will stay as they are. An integer stays readable: 42 is
    `73706f74-0000-8000-8000-000000000042`. Of a text the octets in UTF-8 are hashed, whatever it says: "42" is another
    user than 42, and a text that is a UUID another than that UUID. A UUID is returned as it is.

    Args:
        value: an integer of 64 bits, a text, a `UUID` or an object like one.

    Raises:
        ValueError: it is none of these; the text does not repeat it.
    """
    if isinstance(value, str):
        return _of_text(value)
    if (found := _of_integer(value) or _of_uuid(value)) is not None:
        return found
    raise ValueError("user_id: expected an integer of 64 bits, a text or a UUID")


def integer_id(user_id: UUID) -> int | None:
    """Return the integer that `user_id` has made this UUID of; None for any other UUID."""
    parts = _OF_INTEGER.fullmatch(user_id.hex)
    if parts is None:
        return None
    integer = int("".join(parts.groups()[1:])) * (-1 if parts[1] == "1" else 1)
    return integer if _of_integer(integer) == user_id else None


def parse_user_id(user_id: UserId, *, name: str = "user_id") -> UUID:
    """Return the user id as a UUID. A text has to be a UUID: any other would be a mistyped one, too.

    Args:
        user_id: what a caller has given.
        name: of the caller's argument.

    Raises:
        ValueError: it is none; the text does not repeat it.
    """
    found = _from_text(user_id) if isinstance(user_id, str) else _of_integer(user_id) or _of_uuid(user_id)
    if found is not None:
        return found
    raise ValueError(
        f"{name}: expected a UUID or an integer id; of an integer as text, int(text); "
        "of a text id, spotconn.user_id(text)"
    )


def parse_user_ids(user_ids: Iterable[UserId]) -> list[UUID]:
    """Return several user ids as UUIDs.

    Raises:
        ValueError: it is a single one, or no iterable, or one of them is no user id.
    """
    if isinstance(user_ids, str) or not isinstance(user_ids, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]  callers err
        raise ValueError("user_ids: expected an iterable of user ids")  # noqa: TRY004  bad input is a ValueError
    return [parse_user_id(one, name=f"user_ids[{place}]") for place, one in enumerate(user_ids)]


def _of_text(text: str) -> UUID:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("user_id: expected a text that Postgres can hold")
    hashed = hashlib.sha256(_NAMESPACE + text.encode()).hexdigest()
    return UUID(f"{hashed[:12]}8{hashed[13:16]}b{hashed[17:32]}")


def _of_integer(value: object) -> UUID | None:
    if not isinstance(value, int) or isinstance(value, bool) or value not in _INTEGERS:
        return None
    digits = f"{abs(value):019}"
    return UUID(f"73706f74{int(value < 0)}00{digits[0]}8{digits[1:4]}8{digits[4:]}")


def _of_uuid(value: object) -> UUID | None:
    if isinstance(value, UUID):
        return value
    octets = getattr(value, "bytes", None)
    if isinstance(octets, bytes):
        with suppress(ValueError):
            return UUID(bytes=octets)
    return None


def _from_text(text: str) -> UUID | None:
    with suppress(ValueError):
        return UUID(text)
    return None
