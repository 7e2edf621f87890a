"""Users who cannot be refreshed at the end, and what excuses that: strict rotation loses it whatever a library does."""

from itertools import pairwise

from chaos.history import Ending, History, Request, Write

KILLED, LOST = "killed before the save", "answer lost"
NOBODY_KNEW, FORGOTTEN, RECONNECT_LOST = (
    "a row came back, and the process that knew of the last grant was killed",
    "a row came back, and the last grant had ended",
    "a row came back, without a new authorization",
)
FOREIGN, FAILOVER = "foreign", "failover"
"""Writers that bring rows back."""
RESTORED_WITHIN = 10.0
"""Seconds in which a process has noticed a failover and saved its last grant again."""


def excuse(history: History, ending: Ending) -> tuple[str, str] | None:
    """Return why a user could be lost, with the evidence; None if nothing excuses it."""
    chain = _descent(history, ending.refresh)
    if not chain or chain[0].ended is None:
        return None
    back = _came_back(history, ending, chain)
    if back is not None:
        return _not_mended(history, back, chain[-1])
    if any(write.refresh == chain[0].granted for write in history.writes_of(ending.user)):
        return None  # its successor was in the table
    return _lost_unsaved(history, chain[0])


def _came_back(history: History, ending: Ending, chain: list[Request]) -> Write | None:
    """Return the last write of another writer, or failover, that brought a refresh token back which had been used.

    A process may have mended it with one that had been used since, too.
    """
    for write in reversed(history.writes_of(ending.user)):
        if write.writer in {FOREIGN, FAILOVER} and _is_change(history, write):
            later = _descent(history, write.refresh)
            if later and later[-1] is chain[-1] and later[0].began < write.at:
                return write
    return None


def _lost_unsaved(history: History, used: Request) -> tuple[str, str] | None:
    """Return why what was granted for a refresh token could not come to the table."""
    if used.lost:
        return LOST, f"{used.token} used at {used.began:.3f} by {used.owner}, who got no answer until {used.ended:.3f}"
    died = history.kills.get(used.process)
    if died is not None and died >= used.began:
        return KILLED, f"{used.token} used at {used.began:.3f} by {used.owner}, who was killed at {died:.3f}"
    return None


def _not_mended(history: History, back: Write, last: Request) -> tuple[str, str] | None:
    """Return why nobody could save the last grant again over a row that came back."""
    evidence = (
        f"{back.refresh} came back at {back.at:.3f}; {last.granted} was granted at {last.began:.3f} to {last.owner}"
    )
    if new := _lost_authorization(history, back):
        return RECONNECT_LOST, f"{evidence}; {new.writer} wrote {new.refresh} at {new.at:.3f}"
    saved = any(write.refresh == last.granted for write in history.writes_of(back.user))
    if not saved and (lost := _lost_unsaved(history, last)):
        return lost
    since = max(back.at, last.ended or 0.0)
    until = since + RESTORED_WITHIN
    until += history.stalled(last.process, since, until)
    died = history.kills.get(last.process)
    if died is not None and died <= until:
        return NOBODY_KNEW, f"{evidence}, who was killed at {died:.3f}"
    token = history.tokens.get(last.access)
    if token is not None and token.ends <= until:
        return FORGOTTEN, f"{evidence}, whose token ended at {token.ends:.3f}"
    return None


def _lost_authorization(history: History, back: Write) -> Write | None:
    """Return the write of a refresh token that began a family, which the row has lost that came back."""
    granted = {one.granted for one in history.requests}
    earlier = [write for write in history.writes_of(back.user) if write.at < back.at]
    since = max((write.at for write in earlier if write.refresh == back.refresh), default=0.0)
    known: set[str | None] = {None}
    for write in earlier:
        if write.at > since and write.refresh not in granted | known:
            return write
        known.add(write.refresh)
    return None


def _descent(history: History, token: str | None) -> list[Request]:
    """Return the requests for which Spotify ended a refresh token, its successor, and so on."""
    by_token = {one.token: one for one in history.requests if one.granted is not None}
    chain: list[Request] = []
    while token is not None and (request := by_token.get(token)) is not None:
        chain.append(request)
        token = request.granted
    return chain


def _is_change(history: History, write: Write) -> bool:
    """Return whether a write has changed the refresh token."""
    return any(
        one is write and before.refresh != one.refresh for before, one in pairwise(history.writes_of(write.user))
    )
