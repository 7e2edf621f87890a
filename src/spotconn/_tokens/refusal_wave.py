"""Unexpected refusals of many users' refresh tokens at once: an outage, or a wrong app."""

from collections import deque
from uuid import UUID

WINDOW = 300.0
"""Seconds in which answers count together."""
LEAST_USERS = 10
"""Users refused within the window from which it may be a wave."""
MOST_ANSWERS = 1_000
"""Answers that are counted at most."""


class RefusalWave:
    """Counts the grants and the unexpected refusals of one process. Times are seconds of one steady clock."""

    def __init__(self) -> None:
        self._answers: deque[tuple[float, UUID, bool]] = deque(maxlen=MOST_ANSWERS)
        self._running = False

    def granted(self, user_id: UUID, now: float) -> None:
        """Count a grant."""
        self._answers.append((now, user_id, False))
        self._running = self._running and self._is_wave(now)

    def refused(self, user_id: UUID, now: float) -> bool:
        """Count an unexpected refusal. Return whether a wave begins with it."""
        self._answers.append((now, user_id, True))
        begins = self._is_wave(now) and not self._running
        self._running = self._running or begins
        return begins

    def _is_wave(self, now: float) -> bool:
        while self._answers and self._answers[0][0] < now - WINDOW:
            self._answers.popleft()
        refused = {user_id for _, user_id, is_refusal in self._answers if is_refusal}
        granted = {user_id for _, user_id, is_refusal in self._answers if not is_refusal}
        return len(refused) >= LEAST_USERS and len(refused) > len(granted)
