"""A daily job that asks users to connect again: a letter a month before the end, one a week before, never more.

    python examples/remind_users.py

DATABASE_URL is of an operator's login that may read id and email of auth.users; SMTP_HOST and SMTP_PORT name the mail
server, MAIL_FROM the sender and CONNECT_PAGE the page with "Connect Spotify".

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

import asyncpg

from demo_services import print_line, run
from spotconn import ConnectionAdmin

LETTERS = timedelta(days=7), timedelta(days=30)
"""How long before the end a letter is sent; the last one first, so that nobody gets two at a time."""
SMTP_TIMEOUT = 30
"""Seconds for each answer of the mail server."""
_OF_ONE_ADDRESS = smtplib.SMTPRecipientsRefused, smtplib.SMTPNotSupportedError, ValueError, IndexError
"""What an address raises that is refused, that needs SMTPUTF8 (RFC 6531), or that is none."""

Send = Callable[[str, datetime], Awaitable[None]]
"""Sends the letter to an address; the time is the end of the connection."""


async def remind(admin: ConnectionAdmin, users: asyncpg.Connection, send: Send, *, now: datetime) -> int:
    """Send the letters that are due, and return their number.

    Args:
        admin: of the database.
        users: a session that may read `auth.users`.
        send: sends one letter.
        now: connections that have ended are left out.
    """
    sent = 0
    for before in LETTERS:
        async for connection in admin.expiring(within=before):
            end = connection.reauthorize_by
            if end is None or end <= now:
                continue
            due = end - before
            if connection.asked_at is not None and connection.asked_at >= due:
                continue
            address = await users.fetchval("select email from auth.users where id = $1", connection.user_id)
            if address and await admin.mark_asked([connection.user_id], not_asked_since=due):
                await send(address, end)
                sent += 1
    return sent


def letter(address: str, end: datetime) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = os.environ["MAIL_FROM"], address
    message["Subject"] = "Please connect Spotify again"
    message.set_content(
        f"Spotify ends your connection on {end:%d %B %Y}.\n"
        f"Sign in and connect it again before that day: {os.environ['CONNECT_PAGE']}\n"
    )
    return message


async def main(_arguments: list[str]) -> int:
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

                sent = await remind(admin, users, send, now=datetime.now(UTC))
    finally:
        await users.close(timeout=10)
    print_line(f"{sent} users marked")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
