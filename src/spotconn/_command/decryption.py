"""The doctor's check that the stored tokens decrypt with the keys of the environment."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

import asyncpg

from spotconn._command.catalog import READ_TOKENS
from spotconn._command.finding import Finding
from spotconn._command.probe import UNSEEN, Probe
from spotconn._printable import counted
from spotconn._settings import read_encryption
from spotconn.cipher import MARK, AesGcmSivCipher, NoCipher, TokenColumn, cipher_for
from spotconn.errors import ConfigurationError, DecryptionError

SUBJECT = "decryption"
LONGEST = 20.0
"""Seconds after which no further rows are read."""
BATCH = 1000
"""Rows read in one statement."""
MOST_NAMED = 3
"""Users and keys that a finding names; of the others it gives the number."""

_COLUMNS: tuple[TokenColumn, TokenColumn] = ("access_token", "refresh_token")
_KEY_ID = re.compile(rf"{MARK}\d+\.([0-9a-f]{{8}})\.", re.ASCII)


async def check_decryption(probe: Probe, environ: Mapping[str, str], *, seconds: float = LONGEST) -> Finding:
    """Decrypt the tokens of all connections, in the order of the user ids, for as long as `seconds` last."""
    try:
        keys = read_encryption(environ)["encryption_keys"]
        # Plain text is the subject of another check.
        look = Look(cipher_for(keys, require_encrypted=False) or NoCipher())
    except ConfigurationError as error:
        return Finding(state="skip", subject=SUBJECT, text=f"not tried: {error}")
    if not await probe.become_service_role():
        return Finding(state="skip", subject=SUBJECT, text=UNSEEN)
    end = time.monotonic() + seconds
    start = UUID(int=0)
    while rows := await probe.rows(READ_TOKENS, start, BATCH):
        look.add(rows)
        if len(rows) < BATCH:
            break
        if time.monotonic() > end:
            return look.finding(complete=False)
        start = UUID(int=rows[-1]["user_id"].int + 1)
    return look.finding(complete=True)


@dataclass
class Look:
    """What decrypting shows, row by row.

    Attributes:
        cipher: of the environment.
        rows: connections looked at.
        unknown_keys: connections with a value under a key that the environment lacks, by its id.
        of_unknown_keys: the first users among them.
        not_authentic: connections of known keys with a value that was altered, or moved from another user or column.
        of_not_authentic: the first users among them.
    """

    cipher: AesGcmSivCipher | NoCipher
    rows: int = 0
    unknown_keys: Counter[str] = field(default_factory=Counter[str])
    of_unknown_keys: list[UUID] = field(default_factory=list[UUID])
    not_authentic: int = 0
    of_not_authentic: list[UUID] = field(default_factory=list[UUID])

    def add(self, rows: Iterable[asyncpg.Record]) -> None:
        """Look at rows of `READ_TOKENS`."""
        for row in rows:
            self.rows += 1
            unreadable = list(self._unreadable(row))
            if not unreadable:
                continue
            key_id = next(filter(None, unreadable), None)
            if key_id is None:
                self.not_authentic += 1
                users = self.of_not_authentic
            else:
                self.unknown_keys[key_id] += 1
                users = self.of_unknown_keys
            if len(users) < MOST_NAMED:
                users.append(row["user_id"])

    def _unreadable(self, row: asyncpg.Record) -> Iterator[str | None]:
        """Yield for each value that does not decrypt the id of the key that is missing, or None."""
        known = () if isinstance(self.cipher, NoCipher) else self.cipher.key_ids
        for column in _COLUMNS:
            stored: str = row[column]
            try:
                self.cipher.decrypt(stored, user_id=row["user_id"], column=column)
            except DecryptionError:
                named = _KEY_ID.match(stored)
                yield named[1] if named and named[1] not in known else None

    def finding(self, *, complete: bool) -> Finding:
        """Return the finding.

        Args:
            complete: whether all rows were looked at.
        """
        looked_at = f"{'' if complete else 'the first '}{counted(self.rows, 'connection')} looked at"
        unknown = self.unknown_keys.total()
        if not unknown and not self.not_authentic:
            return Finding(
                state="ok", subject=SUBJECT, text=f"{looked_at}, all that is encrypted decrypts with the keys here"
            )
        # Clients may write their own rows: some bad ones are no reason to stop a deployment, a wrong ring is.
        state: Literal["warn", "fail"] = "fail" if 2 * (unknown + self.not_authentic) > self.rows else "warn"
        return Finding(
            state=state,
            subject=SUBJECT,
            text="; ".join([looked_at, *self._texts(unknown)]),
            remedy="; ".join(self._remedies(unknown)),
        )

    def _texts(self, unknown: int) -> Iterator[str]:
        if unknown:
            named = [f"{key_id} ({count})" for key_id, count in self.unknown_keys.most_common(MOST_NAMED)]
            rest = len(self.unknown_keys) - len(named)
            keys = ", ".join(named) + (f" and {rest} more" if rest else "")
            yield f"{unknown} under keys that SPOTCONN_ENCRYPTION_KEYS lacks: {keys}; {_users(self.of_unknown_keys)}"
        if self.not_authentic:
            yield (
                f"{self.not_authentic} whose tokens were altered, or moved from another user or column; "
                f"{_users(self.of_not_authentic)}"
            )

    def _remedies(self, unknown: int) -> Iterator[str]:
        if unknown:
            yield (
                "put the keys of these ids behind the others in SPOTCONN_ENCRYPTION_KEYS, or, where one is lost, have "
                "its users connect again"
            )
        if self.not_authentic:
            yield (
                "what you have moved by SQL yourself: spotconn move FROM TO, where FROM is the user that it belonged "
                "to before; else these users must connect again"
            )


def _users(users: list[UUID]) -> str:
    return f"among them user {', '.join(map(str, users))}"
