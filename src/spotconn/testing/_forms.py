"""What browsers and programs send to the pages of the simulated Spotify."""

from importlib import import_module

from starlette.requests import Request

import_module("python_multipart")  # Starlette looks for it only when the first form arrives

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
"""Names of this host; any other one that leads here is that of a page that has rebound it (DNS rebinding)."""


def of_another_site(request: Request) -> bool:
    """Return whether a browser sends this for a page that is none of the simulated Spotify.

    `Sec-Fetch-Site` (W3C Fetch Metadata) decides, or `Origin` where a browser does not send it. Programs send neither.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is None and origin is None:
        return False
    own = f"{request.url.scheme}://{request.url.netloc}"
    return request.url.hostname not in LOOPBACK or (origin != own if site is None else site != "same-origin")


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form; of one that is there twice, the last."""
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
