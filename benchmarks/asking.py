"""A simulation of users who are asked for at any of several processes: what the sums of growth.py take together."""

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

LIFE, WINDOW = 3_600.0, 300.0
"""Seconds of an access token, and before its end those in which it is refreshed by the one who is asked."""
MARGIN = 30.0
"""Seconds before its end in which a token is no longer served."""
USERS, PERIODS, SEED = 500, 6, 35


class Asked(NamedTuple):
    """Statements and refreshes of one user in one period, on average."""

    statements: float
    refreshes: float


@dataclass
class _User:
    """When the stored token ends, and what each process knows of it."""

    ends: float
    known: dict[int, float]
    statements: int = 0
    refreshes: int = 0

    def ask(self, now: float, process: int, window: float) -> None:
        """Ask a process for the token: from its cache, else by a read, and with a refresh where it is due."""
        known = self.known.get(process, -math.inf)
        if now < known - window:
            return
        if now >= known - MARGIN:  # not served any more: it reads
            self.statements += 1
            known = self.ends
        if now >= known - window:  # it begins a refresh, and finds that another process was first, or saves its own
            self.statements += 1
            if now >= self.ends - window:
                self.statements += 1
                self.refreshes += 1
                self.ends = now + LIFE
        self.known[process] = self.ends


def asked(processes: int, *, asks: float, period: float) -> Asked:
    """Simulate a few hours of users, each of whom is asked for at random times, at any process.

    Args:
        processes: how many there are.
        asks: for each user in a period, on average.
        period: seconds from one refresh to the next.
    """
    draw = random.Random(SEED)
    users = [_simulated(draw, processes, asks / period, PERIODS * period) for _ in range(USERS)]
    of_all = USERS * PERIODS
    return Asked(sum(user.statements for user in users) / of_all, sum(user.refreshes for user in users) / of_all)


def _simulated(draw: random.Random, processes: int, rate: float, seconds: float) -> _User:
    # As after hours before: the token ends at some time of the next hour, and no process knows it yet.
    user = _User(ends=draw.uniform(0, LIFE), known={})
    window = WINDOW * draw.uniform(0.75, 1)
    now = draw.expovariate(rate)
    while now < seconds:
        user.ask(now, draw.randrange(processes), window)
        now += draw.expovariate(rate)
    return user
