"""Scripted answers of the token endpoint and of the Web API."""

import json as json_module
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of the token endpoint or of the Web API in place of its own.

    Attributes:
        status: of the HTTP answer.
        headers: of the HTTP answer.
        body: of the HTTP answer, unless `json` is given.
        json: a value to send as JSON.
        delay: seconds to wait first.
        lost: a token request is acted upon first, so a refresh token is rotated, and its own answer is lost.
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
    def web_error(cls, status: int, message: str) -> Self:
        """Return an error of the Web API as Spotify sends it, such as a 401 with "Permissions missing"."""
        return cls(status=status, json={"error": {"status": status, "message": message}})

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
