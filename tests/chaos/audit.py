"""Triggers that record every write of a connection and every lease, with the session that made it.

Another one shortens the minute for which a new access token is not replaced.
"""

from datetime import datetime
from uuid import UUID

import asyncpg

from chaos.history import History, Lease, Write, digest
from chaos.plan import MINUTE
from spotconn import AesGcmSivCipher
from spotconn.models import fingerprint

_TABLES = """
create schema chaos;
create table chaos.written (
    number bigserial, at timestamptz, user_id uuid, operation text, writer text, refresh_token text
);
create table chaos.leased (
    number bigserial, began timestamptz, until timestamptz, user_id uuid, fingerprint bytea, owner text,
    ahead double precision
);
create function chaos.note_write() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    insert into chaos.written (at, user_id, operation, writer, refresh_token) values (
        pg_catalog.clock_timestamp(),
        case when tg_op = 'DELETE' then old.user_id else new.user_id end,
        tg_op,
        pg_catalog.current_setting('application_name'),
        case when tg_op <> 'DELETE' then new.refresh_token end
    );
    return null;
end
$$;
create function chaos.note_lease() returns trigger language plpgsql security definer set search_path = '' as $$
declare
    moment constant timestamptz := pg_catalog.clock_timestamp();
begin
    if new.lease_id is not null and (tg_op = 'INSERT' or new.lease_id is distinct from old.lease_id) then
        insert into chaos.leased (began, until, user_id, fingerprint, owner, ahead) values (
            moment, moment + (new.lease_until - new.leased_at), new.user_id, new.fingerprint,
            pg_catalog.current_setting('application_name'),
            extract(epoch from new.leased_at - moment)
        );
    end if;
    return null;
end
$$;
create function chaos.hasten() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    if tg_op = 'INSERT' or new.granted_at is distinct from old.granted_at then
        new.granted_at := new.granted_at - interval '{shorter} seconds';
    end if;
    return new;
end
$$;
create trigger hasten before insert or update on spotconn.refresh_state
    for each row execute function chaos.hasten();
create trigger note_write after insert or update or delete on public.spotify_connections
    for each row execute function chaos.note_write();
create trigger note_lease after insert or update on spotconn.refresh_state
    for each row execute function chaos.note_lease();
"""


async def install(admin: asyncpg.Connection) -> None:
    await admin.execute(_TABLES.replace("{shorter}", str(60 - MINUTE)))


async def collect(admin: asyncpg.Connection, history: History, users: list[UUID], cipher: AesGcmSivCipher) -> None:
    """Add what the triggers have recorded; of tokens only their digests."""
    numbers = {user: number for number, user in enumerate(users)}
    tokens: dict[bytes, str] = {}
    for row in await admin.fetch("select * from chaos.written order by number"):
        stored, refresh = row["refresh_token"], None
        if stored is not None:
            refresh = digest(cipher.decrypt(stored, user_id=row["user_id"], column="refresh_token"))
            tokens[bytes.fromhex(fingerprint(stored))] = refresh
        history.writes.append(
            Write(_seconds(row["at"]), numbers[row["user_id"]], row["operation"], row["writer"], refresh)
        )
    for row in await admin.fetch("select * from chaos.leased order by number"):
        token = tokens.get(row["fingerprint"], "")
        began, until = _seconds(row["began"]), _seconds(row["until"])
        history.leases.append(Lease(began, until, numbers[row["user_id"]], token, row["owner"], row["ahead"]))


def _seconds(moment: datetime) -> float:
    return moment.timestamp()
