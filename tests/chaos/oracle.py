"""What must hold of every run, rule by rule. Each returns what breaks it, as texts."""

from collections.abc import Callable, Iterator
from itertools import pairwise

from chaos.history import Call, History, Request
from chaos.leases import lease_of, stands, voided_unseen
from chaos.losses import FAILOVER, FOREIGN, excuse
from chaos.plan import LEASE, MINUTE, REFRESH_TIMEOUT, STORE_TIMEOUT

BOUND = 2 * (LEASE + REFRESH_TIMEOUT) + 9 * STORE_TIMEOUT
"""Seconds for any call but those for many users: two refreshes, each after another process's, and statements."""
MANY_BOUND = 2 * BOUND
"""Seconds for one pass over all users."""
LATE = 1.0
"""Seconds that an event loop may stand still, when neither the machine nor chaos takes them."""
SLACK = 0.4
"""Seconds between the library's look at a clock and the time that a caller reports."""
READ_BEFORE = 8.0
"""Seconds before a call in which the row may have been read that it is answered from."""
SAVED_WITHIN = 15.0
"""Seconds in which the database is there for long enough to save a grant."""
ALTERS = frozenset({FOREIGN, FAILOVER})
"""Writers of rows that are not of the library."""
PASSING = frozenset({"SpotifyUnavailable", "RefreshInProgress", "DatabaseUnavailable"})
_HELD = frozenset({"get", "get_burst", "get_while_handling", "get_min_ttl", "get_cancelled", "one_of_many"})


def calls_end_in_time(history: History) -> Iterator[str]:
    for call in history.calls:
        bound = MANY_BOUND if call.kind == "many" else BOUND
        lasted = call.ended - call.began - history.stalled(call.process, call.began, call.ended)
        if call.hung or (lasted > bound and call.kind != "one_of_many"):
            yield f"{_name(call)} took {lasted:.1f} s"


def callers_are_left_alone(history: History) -> Iterator[str]:
    for call in history.calls:
        if call.closed:
            yield f"{_name(call)}: its coroutine was ended from outside"
        if call.disturbed:
            yield f"{_name(call)}: the error that its caller was handling was altered"


def loops_run(history: History) -> Iterator[str]:
    for beat in history.beats:
        late = beat.late - history.stalled(beat.process, beat.at - beat.late - 1.0, beat.at)
        if late > LATE:
            yield f"{beat.process}: the event loop stood still for {late:.2f} s until {beat.at:.3f}"


def tokens_are_good(history: History) -> Iterator[str]:
    """A token belongs to the user, and Spotify had not ended it when it was handed out."""
    for call in history.calls:
        if call.result is None:
            continue
        token = history.tokens.get(call.result)
        if token is None:
            yield f"{_name(call)}: Spotify never granted {call.result}"
            continue
        if token.user != call.user:
            yield f"{_name(call)}: a token of user {token.user}"
        answered = call.ended - history.stalled(call.process, call.began, call.ended)
        # Set back, the clock gives a stored end that much more time.
        if answered > token.ends + SLACK + history.set_back(token.issued, answered):
            yield f"{_name(call)}: a token that had ended {answered - token.ends:.2f} s before"


def rejected_tokens_are_replaced(history: History) -> Iterator[str]:
    """The token that the Web API has refused is not the answer, nor later one of that manager."""
    for call in history.calls:
        if call.rejected is None or call.result is None:
            continue
        if call.result == call.rejected:
            yield f"{_name(call)}: the rejected token"
        for later in history.calls:
            again = later.result == call.rejected and later.began > call.ended and later.kind in _HELD
            if again and (later.process, later.manager) == (call.process, call.manager):
                foreign = any(w.writer in ALTERS and w.at <= later.ended for w in history.writes_of(call.user))
                if not foreign:
                    yield f"{_name(later)}: {call.result} had replaced this token"


def errors_are_true(history: History) -> Iterator[str]:
    """Only errors that the state of the world explains."""
    for call in history.calls:
        if call.error is None or call.error in PASSING:
            continue
        if call.error == "NotConnected" and _was_absent(history, call):
            continue
        if call.error == "ReauthorizationRequired" and _was_refused(history, call):
            continue
        if call.error == "ConnectFailed" and call.kind == "reconnect":
            continue
        yield f"{_name(call)}: {call.error}: {call.text}"


def one_request_in_flight(history: History) -> Iterator[str]:
    """While a holder lives and its lease stands, nobody else sends its refresh token."""
    by_token: dict[str, list[Request]] = {}
    for request in sorted(history.requests, key=lambda one: one.began):
        for earlier in by_token.get(request.token, ()):
            if earlier.ended is None or earlier.ended > request.began + 0.05:
                lease = lease_of(history, earlier)
                if lease is None:
                    yield f"{earlier.owner} sent {earlier.token} at {earlier.began:.3f} without a lease"
                elif stands(history, lease, earlier, request.began) and not voided_unseen(history, request, lease):
                    yield (
                        f"{request.owner} sent {request.token} at {request.began:.3f}, while {earlier.owner} did, "
                        f"whose lease ran from {lease.began:.3f} to {lease.until:.3f}"
                    )
        by_token.setdefault(request.token, []).append(request)


def nothing_newer_is_overwritten(history: History) -> Iterator[str]:
    """A refresh, or a grant that is saved once more, stands only over what it has replaced or Spotify had ended."""
    asked = _asked(history)
    ended = {one.token: one.began for one in history.requests if one.granted is not None}
    for user in range(history.users):
        for before, write in pairwise(history.writes_of(user)):
            if "/" not in write.writer or write.refresh not in asked or before.refresh is None:
                continue
            newer = before.refresh != write.refresh and before.refresh not in _replaced(asked, write.refresh)
            if newer and ended.get(before.refresh, write.at) >= write.at:
                yield f"{write.writer} wrote {write.refresh} at {write.at:.3f} over {before.refresh} of {before.writer}"


def grants_are_saved(history: History) -> Iterator[str]:
    """What Spotify has granted comes to the table while its holder lives and the row holds what it replaces."""
    for request in history.requests:
        writes = history.writes_of(request.user)
        saved = any(write.refresh == request.granted for write in writes)
        if request.granted is None or request.ended is None or request.lost or saved:
            continue
        lease = lease_of(history, request)  # the row may have changed since, and before the request was on the way
        since = request.began if lease is None else lease.began
        later = [write.at for write in writes if write.at > since and write.refresh != request.token]
        last = writes[-1].at if writes else 0.0
        until = min([*later, history.kills.get(request.process, last)])
        waited = until - request.ended - history.stalled(request.process, request.ended, until)
        if waited > SAVED_WITHIN:
            yield f"{request.owner} did not save {request.granted} within {waited:.1f} s"


def answers_are_awaited(history: History) -> Iterator[str]:
    """Whatever its callers do, a process that lives waits for Spotify's answer until its timeout."""
    for request in history.requests:
        if request.granted is None or request.ended is None or not request.left:
            continue
        lease = lease_of(history, request)
        # All attempts share one timeout, and it may have been frozen between its first step and its bytes on the way.
        waited = request.ended - (request.began if lease is None else lease.began)
        ends = [times[request.process] for times in (history.kills, history.closings) if request.process in times]
        if waited < REFRESH_TIMEOUT - SLACK and not any(end <= request.ended + SLACK for end in ends):
            yield f"{request.owner} did not wait for the answer to {request.token}: it left after {waited:.2f} s"


def new_tokens_are_kept(history: History) -> Iterator[str]:
    """What was saved within the minute is not refreshed, unless the row was altered or the token had to go."""
    asked = _asked(history)
    rejected = {call.rejected for call in history.calls}
    for request in history.requests:
        first = asked.get(request.token)
        if first is None or first.access in rejected:
            continue
        saved = [write for write in history.writes_of(first.user) if write.refresh == request.token]
        others = [
            write
            for write in history.writes_of(first.user)
            if write.writer in ALTERS and first.began <= write.at <= request.began
        ]
        token = history.tokens.get(first.access)
        # It was saved late, with an end that counts from when Spotify was asked.
        ended = token is not None and token.ends - REFRESH_TIMEOUT - SLACK <= request.began
        if not saved or len(history.offsets(saved[0].at - SLACK, request.began)) > 1:
            continue  # the minute is one of a clock that was set
        if len(saved) == 1 and not others and not ended and 0 < request.began - saved[0].at < MINUTE - SLACK:
            yield f"{request.owner} sent {request.token} {request.began - saved[0].at:.2f} s after it was saved"


def users_can_be_refreshed(history: History) -> Iterator[str]:
    for ending in history.endings:
        if ending.connected and not ending.refreshed and excuse(history, ending) is None:
            yield f"user {ending.user} cannot be refreshed at the end ({ending.refresh}): {ending.error}"
        deleted = [write for write in history.writes_of(ending.user) if write.operation != "UPDATE"][-1:]
        if not ending.connected and (not deleted or deleted[0].operation != "DELETE"):
            yield f"user {ending.user} is not connected at the end, and nobody has disconnected"


def nothing_is_left(history: History) -> Iterator[str]:
    yield from history.problems


RULES: tuple[Callable[[History], Iterator[str]], ...] = (
    calls_end_in_time,
    callers_are_left_alone,
    loops_run,
    tokens_are_good,
    rejected_tokens_are_replaced,
    errors_are_true,
    one_request_in_flight,
    nothing_newer_is_overwritten,
    grants_are_saved,
    answers_are_awaited,
    new_tokens_are_kept,
    users_can_be_refreshed,
    nothing_is_left,
)


def violations(history: History) -> list[str]:
    """Return what breaks the rules, each with the name of its rule."""
    return [f"{rule.__name__}: {text}" for rule in RULES for text in rule(history)]


def excused(history: History) -> list[str]:
    """Return the users who are lost to strict rotation, each with the evidence."""
    lost = [one for one in history.endings if one.connected and not one.refreshed]
    return [f"user {one.user}: {found[0]}: {found[1]}" for one in lost if (found := excuse(history, one))]


def _was_absent(history: History, call: Call) -> bool:
    """Return whether the user had no row at some time near the call."""
    absent_since: float | None = None
    for write in history.writes_of(call.user):
        if write.operation == "DELETE":
            absent_since = write.at
        elif absent_since is not None:
            if absent_since <= call.ended and write.at >= call.began - READ_BEFORE:
                return True
            absent_since = None
    return absent_since is not None and absent_since <= call.ended


def _was_refused(history: History, call: Call) -> bool:
    """Return whether Spotify had refused a refresh token that the row held near the call."""
    writes = history.writes_of(call.user)
    ends = [write.at for write in writes[1:]] + [float("inf")]
    held = {
        write.refresh
        for write, end in zip(writes, ends, strict=True)
        if write.at <= call.ended and end >= call.began - READ_BEFORE
    }
    return any(one.outcome == "refused" and one.token in held and one.began <= call.ended for one in history.requests)


def _asked(history: History) -> dict[str | None, Request]:
    """Return the requests by the refresh token that was granted."""
    return {one.granted: one for one in history.requests if one.granted is not None}


def _replaced(asked: dict[str | None, Request], token: str | None) -> set[str]:
    """Return the refresh tokens from which one descends."""
    found: set[str] = set()
    while (request := asked.get(token)) is not None:
        token = request.token
        found.add(token)
    return found


def _name(call: Call) -> str:
    return f"{call.kind} of user {call.user} in {call.process}/{call.manager}, {call.began:.3f} to {call.ended:.3f}"
