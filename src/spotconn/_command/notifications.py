"""The doctor's check that changes of connections are notified, and that the queue of NOTIFY is being read."""

from collections.abc import Sequence

from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._database.errors import APPLY_SCHEMA

SUBJECT = "changes"
WARN_AT = 0.1
"""Share of the queue in use: 800 MB of the 8 GB that it has by default, where a healthy server has nothing."""
FIND_HOLDER = (
    "select pid, usename, application_name, datname, xact_start from pg_stat_activity "
    "where xact_start is not null order by xact_start"
)
# Of all databases: they share the queue. Sessions of other roles show no xact_start to a login without pg_monitor.
_HOLDERS = """
select pid from pg_catalog.pg_stat_activity
where pid <> pg_catalog.pg_backend_pid() and xact_start < pg_catalog.now() - interval '1 minute'
order by xact_start
limit 3
"""


async def check_notifications(probe: Probe) -> Finding:
    """Check that the triggers are there, and how full the queue is; asking for that frees what all have read."""
    if await probe.value("select pg_catalog.pg_is_in_recovery()"):
        return Finding(state="skip", subject=SUBJECT, text="a replica notifies nobody")
    usage: float = await probe.value("select pg_catalog.pg_notification_queue_usage()")
    if usage >= WARN_AT:
        return queue_finding(usage, [row["pid"] for row in await probe.rows(_HOLDERS)])
    if await probe.value("select spotconn.count_skipped()") is not None:
        return Finding(state="ok", subject=SUBJECT, text="every process that listens is notified")
    return Finding(
        state="warn",
        subject=SUBJECT,
        text="the triggers that notify of changes are missing or disabled: what one process disconnects, "
        "others remember for up to cache_ttl",
        remedy=f"unless that is meant: {APPLY_SCHEMA}",
    )


def queue_finding(usage: float, holders: Sequence[int]) -> Finding:
    """Return the finding about a queue that a session does not read.

    Args:
        usage: the share of the queue in use.
        holders: process ids of the sessions whose transactions began first, as far as they are to be seen.
    """
    oldest = f"; the oldest transactions to be seen are of pid {', '.join(map(str, holders))}" if holders else ""
    return Finding(
        state="warn",
        subject=SUBJECT,
        text=f"the queue of NOTIFY is {usage:.0%} full, because a session that has run LISTEN sits in a transaction"
        f"{oldest}. From 50% on changes are not notified and are cached for up to cache_ttl; once it is full, what "
        "notifies fails",
        remedy=f"find that session as an administrator: {FIND_HOLDER}; end its transaction, or SELECT "
        "pg_terminate_backend(pid); then SELECT pg_notification_queue_usage(), which frees the queue",
    )
