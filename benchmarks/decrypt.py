"""How much of a token from the database is decrypting."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from benchmarks.callers import CROWD
from benchmarks.place import drawing, in_turn, managing, new_database, stored_users
from benchmarks.rounds import Figure, Round, Rounds, at_once, each, interleaved, noting
from benchmarks.sizes import Size
from spotconn import AesGcmSivCipher, Connection, Profile, TokenCipher, TokenGrant, TokenManager
from spotconn.cipher import TokenColumn
from spotconn.testing import EmbeddedPostgres

USERS = 1000


class TimedCipher:
    """A cipher that counts the seconds of its decrypting."""

    def __init__(self, cipher: TokenCipher) -> None:
        self._cipher = cipher
        self.seconds = 0.0

    def encrypt(self, token: str, *, user_id: UUID, column: TokenColumn) -> str:
        """As the cipher."""
        return self._cipher.encrypt(token, user_id=user_id, column=column)

    def decrypt(self, stored: str, *, user_id: UUID, column: TokenColumn) -> str:
        """As the cipher, timed."""
        begun = time.perf_counter()
        token = self._cipher.decrypt(stored, user_id=user_id, column=column)
        self.seconds += time.perf_counter() - begun
        return token


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """The median shares within the rounds, of a lone caller and of a crowd, and microseconds for each token."""
    database = await new_database(server, "decrypt", rows=USERS)
    users = await stored_users(database)
    cipher = TimedCipher(AesGcmSivCipher([AesGcmSivCipher.generate_key()]))
    async with managing(database.dsn(), cipher=cipher, cache_ttl=0) as tokens:
        for user in users:
            await tokens.store.save(user, _grant(), Profile(spotify_user_id="account"))
        rounds = await _rounds(tokens, cipher, users, size)
    return [
        Figure("decrypt_share", rounds.ratio("decrypt", "read_encrypted")),
        Figure("decrypt_share_crowd", rounds.ratio("decrypt_crowd", "read_encrypted_crowd")),
        Figure("decrypt_crowd_vs_alone", rounds.ratio("decrypt_crowd", "decrypt_alone")),
        *rounds.figures(),
    ]


async def _rounds(tokens: TokenManager, cipher: TimedCipher, users: list[UUID], size: Size) -> Rounds:
    one_by_one = each(tokens.get_valid_token, drawing(users, size.cold_calls))
    crowd = at_once(tokens.get_valid_token, in_turn(users, size.crowd_calls), CROWD)
    lone_seconds: list[float] = []
    crowd_seconds: list[float] = []

    def decrypting() -> float:
        return cipher.seconds

    rounds = await interleaved(
        {
            "read_encrypted": noting(one_by_one, decrypting, lone_seconds, calls=size.cold_calls),
            "read_encrypted_crowd": noting(crowd, decrypting, crowd_seconds, calls=size.crowd_calls),
            "decrypt_alone": _alone(cipher, await _stored(tokens, users), in_turn(users, size.crowd_calls)),
        },
        size.rounds,
    )
    rounds.add("decrypt", lone_seconds)
    rounds.add("decrypt_crowd", crowd_seconds)
    return rounds


async def _stored(tokens: TokenManager, users: list[UUID]) -> dict[UUID, str]:
    """The encrypted access tokens."""
    read = await tokens.store.get_many(users)
    return {user: row.texts.access_token for user, row in read.items() if isinstance(row, Connection)}


def _alone(cipher: TimedCipher, stored: dict[UUID, str], draw: Callable[[], list[UUID]]) -> Round:
    """A round of decrypting and nothing else, by the same clock as in a read."""

    async def run() -> float:
        users, before = draw(), cipher.seconds
        for user in users:
            cipher.decrypt(stored[user], user_id=user, column="access_token")
        return (cipher.seconds - before) / len(users)

    return run


def _grant() -> TokenGrant:
    ends = datetime.now(UTC) + timedelta(hours=1)
    return TokenGrant(access_token="BQ" + 194 * "x", refresh_token="AQ" + 129 * "x", expires_at=ends)
