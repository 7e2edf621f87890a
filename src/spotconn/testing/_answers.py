"""Scripted answers of the token endpoint, and holds that delay its answers."""

import asyncio
import json as json_module
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of the token endpoint in place of its own.

    Attributes:
        status: of the HTTP answer.
        headers: of the HTTP answer.
        body: of the HTTP answer, unless `json` is given.
        json: a value to send as JSON.
        delay: seconds to wait first.
        lost: the request is acted upon first, so a refresh token is rotated, and its own answer is lost.
        cut: the connection is closed in the middle of the answer.
        hang: nothing is sent until the client leaves.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    json: object = None
    delay: float = 0.0
    lost: bool = False
    cut: bool = False
    hang: bool = False

    @property
    def content(self) -> bytes:
        """Return the body that is sent."""
        return self.body if self.json is None else json_module.dumps(self.json).encode()

    @classmethod
    def too_many_requests(cls, retry_after: str | None = None) -> Self:
        """Return a 429 as Spotify sends it: Retry-After in seconds or as an HTTP date, and a body that is not JSON."""
        headers = {} if retry_after is None else {"retry-after": retry_after}
        return cls(status=429, headers=headers, body=b"Too many requests")

    @classmethod
    def unavailable(cls, status: int = 503) -> Self:
        """Return a 5xx of the proxies in front of Spotify, with HTML instead of JSON."""
        body = b"<html><body>upstream connect error or disconnect/reset before headers</body></html>"
        return cls(status=status, headers={"content-type": "text/html"}, body=body)

    @classmethod
    def truncated(cls) -> Self:
        """Return a 200 with JSON that is cut off."""
        return cls(headers={"content-type": "application/json"}, body=b'{"access_token": "BQ')

    @classmethod
    def reset(cls) -> Self:
        """Return an answer whose connection is cut after Spotify has acted on the request: the worst moment."""
        return cls(lost=True, cut=True, body=b'{"access')

    @classmethod
    def black_hole(cls) -> Self:
        """Return an answer that is never sent."""
        return cls(hang=True)


class Hold:
    """Holds token answers until the end of its `with` block, or until `release`.

    Args:
        before: hold before the request is acted upon, rather than after.
        calls: how many calls to hold, while later ones pass; None holds all.
        forget: called when the block ends.
    """

    def __init__(self, *, before: bool, calls: int | None, forget: Callable[[], None]) -> None:
        self.before = before
        self._calls = calls
        self._forget = forget
        self._reached = asyncio.Event()
        self._release = asyncio.Event()

    def takes(self) -> bool:
        """Return whether to hold the call that has just arrived, and count it."""
        if self._calls is None:
            return True
        self._calls -= 1
        return self._calls >= 0

    async def reached(self) -> None:
        """Wait until a call is being held."""
        await self._reached.wait()

    def release(self) -> None:
        """Answer the held calls, and hold no later ones."""
        self._release.set()

    async def wait(self) -> None:
        """Wait for the release."""
        self._reached.set()
        await self._release.wait()

    def __enter__(self) -> Self:
        """Return this hold, which is already active."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the held calls, and remove the hold."""
        self.release()
        self._forget()
