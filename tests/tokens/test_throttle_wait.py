"""How long a pass over many users waits for Spotify."""

from spotconn import NotConnected, RefreshInProgress, SpotifyUnavailable
from spotconn._spotify.marks import Mark, marked
from spotconn._tokens.throttle_wait import ThrottleWait


def throttled(seconds: float | None) -> SpotifyUnavailable:
    """An answer with a Retry-After."""
    return marked(SpotifyUnavailable("wait", retry_after=seconds), Mark.OF_ONE_APP)


def test_waits_that_overlap_count_once() -> None:
    """The answers of one Retry-After, which come at different moments, are one wait; only what is longer counts."""
    began: list[None] = []
    wait = ThrottleWait(10, lambda: began.append(None))

    def after(seconds: float | None, now: float) -> float | None:
        return wait.until(throttled(seconds), now)

    assert after(8, 100.0) == 108.0
    assert after(8, 100.5) == 108.5  # the same one: it costs nothing
    assert (len(began), wait.remaining(101.0)) == (1, 7.0)
    assert after(9.5, 101.0) is None  # two and a half seconds more
    assert after(8.9, 101.0) == 109.9
    assert after(None, 101.0) is None
    assert after(1.0, 200.0) is None  # all is spent
    assert wait.remaining(200.0) == 0.0
    backoff = SpotifyUnavailable("of one user", retry_after=1)
    for answer in ("a token", NotConnected("no"), RefreshInProgress("busy", retry_after=1), backoff):
        assert ThrottleWait(10, lambda: None).until(answer, 300.0) is None


def test_no_wait_is_shorter_than_a_second() -> None:
    """A Retry-After of 0 does not have Spotify asked in a loop."""
    wait = ThrottleWait(2.5, lambda: None)
    moments = [wait.until(throttled(0), now) for now in (0.0, 1.0, 2.0)]
    assert moments == [1.0, 2.0, None]
