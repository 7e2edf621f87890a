"""The connections that one process remembers, in bounded number and for a bounded time."""

from uuid import UUID

from spotconn.models import Connection


class ConnectionCache:
    """Remembers connections for `ttl` seconds; with more than `size`, the one remembered longest goes.

    Args:
        ttl: seconds.
        size: number of connections.
    """

    def __init__(self, *, ttl: float, size: int) -> None:
        self._ttl = ttl
        self._size = size
        self._entries: dict[UUID, tuple[float, Connection]] = {}
        self._generation = 0

    def __len__(self) -> int:
        """How many are remembered, also too long ago."""
        return len(self._entries)

    @property
    def generation(self) -> int:
        """Grows with every `discard`: taken before a read, it tells `put` whether the read is still good."""
        return self._generation

    def get(self, user_id: UUID, now: float) -> Connection | None:
        """The remembered connection of a user, if it is not too old."""
        entry = self._entries.get(user_id)
        if entry is None or not entry[0] <= now < entry[0] + self._ttl:
            return None
        return entry[1]

    def put(self, connection: Connection, now: float, generation: int) -> None:
        """Remember a connection, unless something was discarded since it was read."""
        if generation != self._generation:
            return
        self._entries.pop(connection.user_id, None)
        if len(self._entries) >= self._size:
            self._entries.pop(next(iter(self._entries), connection.user_id), None)
        if self._size:
            self._entries[connection.user_id] = (now, connection)

    def discard(self, user_id: UUID) -> None:
        """Forget a user, and what any read now under way brings."""
        self._generation += 1
        self._entries.pop(user_id, None)
