"""A tenant writes another's address into the own row, so that the service sends its letters there."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from remind_users import remind
from spotconn import ConnectionAdmin, ConnectionStore, Profile
from support.connections import grant
from support.database import Database
from support.tenant import signed_in


async def test_the_mail_job_writes_to_the_address_of_the_sign_up(
    database: Database,
    store: ConnectionStore,
    users: list[UUID],
    operator: str,
    admin: asyncpg.Connection,
    request: pytest.FixtureRequest,
) -> None:
    """The one in the row is the tenant's to write; the letter goes to the tenant's own, or nowhere."""
    tenant_id, other_id = users[:2]
    half_a_year_ago = datetime.now(UTC) - timedelta(days=170)
    for user in (tenant_id, other_id):
        await store.save(user, grant("a"), Profile(spotify_user_id="x"), connected_at=half_a_year_ago)
    await admin.execute("update auth.users set email = 'tenant@example.com' where id = $1", tenant_id)
    await admin.execute("update auth.users set email = null where id = $1", other_id)
    async with signed_in(database.admin_dsn, tenant_id) as tenant:
        written = await tenant.patch(email="victim@example.com")
    if request.config.getoption("--locked-down"):  # clients write nothing then; what was written before stays
        await admin.execute("update public.spotify_connections set email = 'victim@example.com'")
    else:
        assert written == "UPDATE 1"
    letters = list[str]()

    async def send(address: str, _end: datetime) -> None:
        letters.append(address)

    async with ConnectionAdmin.open(operator) as house:
        assert await remind(house, admin, send, now=datetime.now(UTC)) == (1, 1)
    assert letters == ["tenant@example.com"]
