"""A way to Postgres that breaks on demand."""

from collections.abc import AsyncIterator

import pytest

from support.database import Database
from support.fault_proxy import FaultProxy


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(database.server.port).serve() as serving:
        yield serving
