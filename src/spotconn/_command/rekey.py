"""`spotconn rekey`: the work with its progress bar, and what there is to say of the rows that it leaves."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spotconn._command.console import open_admin
from spotconn.overview import RekeyProgress


async def rekey_with_bar() -> RekeyProgress:
    """Encrypt every stored token with the first key, and show how far that is where standard error is a terminal."""
    columns = TextColumn("rekey"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.file.isatty()) as bar:
        task = bar.add_task("rekey", total=None)
        async with open_admin() as admin:
            return await admin.rekey(progress=lambda now: bar.update(task, completed=now.done, total=now.total))


def rows_left(done: RekeyProgress) -> str:
    """Return the message about rows that a rekey leaves as they are."""
    return (
        f"{done.remaining} connections are left as they are: {done.plain_text} in plain text, which this service "
        f"refuses, {done.unknown_key} under keys that the ring lacks, {done.unreadable} damaged or altered; "
        "spotconn doctor says what to do"
    )
