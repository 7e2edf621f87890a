"""A daily job that asks users to connect again: a letter a month before the end, one a week before, never more.

    python examples/remind_users.py

DATABASE_URL is of an operator's login that may read id and email of auth.users; SMTP_HOST and SMTP_PORT name the mail
server, MAIL_FROM the sender and CONNECT_PAGE the page with "Connect Spotify". Where users are in a table of their own,
change `address_of`. The status is 1 if a user has no address, or the job ended early.

A user is marked before the letter is sent, so a letter is sent at most once, on however many hosts the job runs at
once and however often. One that is cut off between the two is not sent at all: the user gets the other one. So the mail
server is asked first, and the first letter that it does not take, for another reason than the address, ends the job:
tomorrow goes on with the others.
"""

import asyncio
import os
import smtplib
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from uuid import UUID

import asyncpg

from spotconn import ConnectionAdmin, SpotconnError

LETTERS = timedelta(days=7), timedelta(days=30)
"""How long before the end a letter is sent; the last one first, so that nobody gets two at a time."""
SMTP_TIMEOUT = 30
"""Seconds for each answer of the mail server."""
_OF_ONE_ADDRESS = smtplib.SMTPRecipientsRefused, smtplib.SMTPNotSupportedError, ValueError, IndexError
"""What an address raises that is refused, that needs SMTPUTF8 (RFC 6531), or that is none."""

Send = Callable[[str, datetime], Awaitable[None]]
"""Sends the letter to an address; the time is the end of the connection."""


def print_line(text: str) -> None:
    print(text, flush=True)


async def address_of(users: asyncpg.Connection, user_id: UUID) -> str | None:
    """Return the address of the sign-up, which nobody else can have written."""
    address: str | None = await users.fetchval("select email from auth.users where id = $1", user_id)
    return address


async def remind(admin: ConnectionAdmin, users: asyncpg.Connection, send: Send, *, now: datetime) -> tuple[int, int]:
    """Send the letters that are due, and return how many users were marked, and how many have no address.

    Args:
        admin: of the database.
        users: a session that may read the addresses.
        send: sends one letter.
        now: connections that have ended are left out.
    """
    marked = no_address = 0
    for before in LETTERS:
        async for connection in admin.expiring(within=before):
            end = connection.reauthorize_by
            if end is None or end <= now:
                continue
            due = end - before
            if connection.asked_at is not None and connection.asked_at >= due:
                continue
            address = await address_of(users, connection.user_id)
            if not address:
                no_address += before == max(LETTERS)  # that list has all users of the others
            elif await admin.mark_asked([connection.user_id], not_asked_since=due):
                await send(address, end)
                marked += 1
    return marked, no_address


def letter(address: str, end: datetime) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = os.environ["MAIL_FROM"], address
    message["Subject"] = "Please connect Spotify again"
    message.set_content(
        f"Spotify ends your connection on {end:%d %B %Y}.\n"
        f"Sign in and connect it again before that day: {os.environ['CONNECT_PAGE']}\n"
    )
    return message


async def main() -> int:
    if missing := {"DATABASE_URL", "SMTP_HOST", "SMTP_PORT", "MAIL_FROM", "CONNECT_PAGE"} - os.environ.keys():
        raise ValueError(f"set {', '.join(sorted(missing))}")
    dsn = os.environ["DATABASE_URL"]
    users = await asyncpg.connect(dsn, timeout=10, command_timeout=10, statement_cache_size=0)
    try:
        async with ConnectionAdmin.open(dsn) as admin:
            with smtplib.SMTP(os.environ["SMTP_HOST"], int(os.environ["SMTP_PORT"]), timeout=SMTP_TIMEOUT) as server:

                async def send(address: str, end: datetime) -> None:
                    try:
                        await asyncio.to_thread(server.send_message, letter(address, end))
                    except _OF_ONE_ADDRESS:
                        print_line("no letter can be sent to an address")

                marked, no_address = await remind(admin, users, send, now=datetime.now(UTC))
    finally:
        await users.close(timeout=10)
    print_line(f"{marked} users marked, {no_address} without an address")
    return 1 if no_address else 0


def run() -> int:
    try:
        return asyncio.run(main())
    except (SpotconnError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, OSError) as error:
        print_line(f"{type(error).__name__}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(run())
