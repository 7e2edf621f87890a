"""The HTTP response of a scripted answer, with its faults."""

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from spotconn.testing._answers import Answer


class Scripted(Response):
    """An answer that a test has scripted."""

    def __init__(self, answer: Answer) -> None:
        media_type = None if answer.json is None else "application/json"
        super().__init__(answer.content, answer.status, dict(answer.headers), media_type)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, a part of it, or nothing."""
        await asyncio.sleep(self._answer.delay)
        if self._answer.hang:
            while (await receive())["type"] != "http.disconnect":
                pass
        elif self._answer.cut:
            # A body shorter than announced: the server can only close the connection.
            headers = [(b"content-length", str(len(self.body) + 100).encode())]
            await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
        else:
            await super().__call__(scope, receive, send)
