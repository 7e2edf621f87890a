"""The body of a response of httpx or httpx2, once somebody else has read it."""

import asyncio
from collections.abc import Callable
from typing import Any

from spotconn._spotify.http_library import PassedStream


def when_read(response: Any, report: Callable[[bytes], object]) -> None:
    """Call `report` with the body of a response once it is read as a whole, which a caller that streams may never do.

    Args:
        response: of the client, before its caller has it.
        report: is called by the event loop or at once; it must neither block nor raise.
    """
    try:
        body = response.content
    except RuntimeError:  # of either client: it is not read yet
        response.stream = _ClosingStream(response.stream, lambda: _report_later(response, report))
    else:  # a hook of the caller's has read it
        report(body)


def _report_later(response: Any, report: Callable[[bytes], object]) -> None:
    # The client closes the stream first and then stores what it has read, without suspending in between.
    asyncio.get_running_loop().call_soon(_report_if_read, response, report)


def _report_if_read(response: Any, report: Callable[[bytes], object]) -> None:
    try:
        body = response.content
    except RuntimeError:  # it was streamed
        return
    report(body)


class _ClosingStream(PassedStream):
    """A stream that calls a function when it is closed.

    Args:
        stream: of the client.
        on_close: is called after it.
    """

    def __init__(self, stream: Any, on_close: Callable[[], object]) -> None:
        super().__init__(stream)
        self._on_close = on_close

    async def aclose(self) -> None:
        await super().aclose()
        self._on_close()
