"""The two HTTP libraries that a client of the caller's own may be of, whichever the library itself uses."""

from typing import Any

import pytest


@pytest.fixture(params=["httpx", "httpx2"])
def http_library(request: pytest.FixtureRequest) -> Any:
    """Each of them, as far as it is installed."""
    return pytest.importorskip(request.param)
