"""How much of a token from the database is decrypting."""

import time
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from benchmarks.place import drawing, managing, new_database, stored_users
from benchmarks.rounds import Figure, each, interleaved
from benchmarks.sizes import Size
from spotconn import AesGcmSivCipher, Profile, TokenCipher, TokenGrant
from spotconn.testing import EmbeddedPostgres

USERS = 100


class TimedCipher:
    """A cipher that counts the seconds of its decrypting."""

    def __init__(self, cipher: TokenCipher) -> None:
        self._cipher = cipher
        self.seconds = 0.0

    def encrypt(self, token: str, *, user_id: UUID, column: Literal["access_token", "refresh_token"]) -> str:
        """As the cipher."""
        return self._cipher.encrypt(token, user_id=user_id, column=column)

    def decrypt(self, stored: str, *, user_id: UUID, column: Literal["access_token", "refresh_token"]) -> str:
        """As the cipher, timed."""
        begun = time.perf_counter()
        token = self._cipher.decrypt(stored, user_id=user_id, column=column)
        self.seconds += time.perf_counter() - begun
        return token


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """The median share within the rounds, and microseconds of decrypting for each token."""
    database = await new_database(server, "decrypt", rows=USERS)
    users = await stored_users(database)
    cipher = TimedCipher(AesGcmSivCipher([AesGcmSivCipher.generate_key()]))
    async with managing(database.dsn(), cipher=cipher, cache_ttl=0) as tokens:
        for user in users:
            await tokens.store.save(user, _grant(), Profile(spotify_user_id="account"))
        whole = each(tokens.get_valid_token, drawing(users, size.cold_calls))
        decrypting: list[float] = []

        async def read() -> float:
            before = cipher.seconds
            seconds = await whole()
            decrypting.append((cipher.seconds - before) / size.cold_calls)
            return seconds

        rounds = await interleaved({"read_encrypted": read}, size.rounds)
    rounds.seconds = {**rounds.seconds, "decrypt": decrypting[1:]}
    return [Figure("decrypt_share", rounds.ratio("decrypt", "read_encrypted")), *rounds.figures()]


def _grant() -> TokenGrant:
    ends = datetime.now(UTC) + timedelta(hours=1)
    return TokenGrant(access_token="BQ" + 194 * "x", refresh_token="AQ" + 129 * "x", expires_at=ends)
