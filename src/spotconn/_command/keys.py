"""The commands about encryption keys: `spotconn keygen` and `spotconn rekey`."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spotconn._command.arguments import Json
from spotconn._command.console import open_admin, run
from spotconn._command.output import ROWS_LEFT, fail, print_line, write_json, write_line
from spotconn._printable import counted
from spotconn.cipher import AesGcmSivCipher
from spotconn.overview import RekeyProgress


def keygen(*, as_json: Json = False) -> None:
    """Print a new encryption key for SPOTCONN_ENCRYPTION_KEYS."""
    key = AesGcmSivCipher.generate_key()
    key_id = run(_key_id(key))
    if as_json:
        write_json({"id": key_id, "key": key})
        return
    write_line(key)
    print_line(f"its id is {key_id}; keep the older keys behind it until `spotconn rekey` is done")


async def _key_id(key: str) -> str:
    return AesGcmSivCipher([key]).key_ids[0]


def rekey(*, as_json: Json = False) -> None:
    """Encrypt every stored token with the first of SPOTCONN_ENCRYPTION_KEYS; may be stopped and run again."""
    done = run(_rekey_with_bar(), stopped="stopped; what was done stays done, run it again to go on")
    if as_json:
        write_json(done)
    else:
        write_line(f"{counted(done.done, 'connection')} rewritten, {done.encrypted} of them from plain text")
    if done.remaining:
        fail(_rows_left(done), ROWS_LEFT)


async def _rekey_with_bar() -> RekeyProgress:
    """Encrypt every stored token with the first key, and show how far that is where standard error is a terminal."""
    columns = TextColumn("rekey"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.file.isatty()) as bar:
        task = bar.add_task("rekey", total=None)
        async with open_admin() as admin:
            return await admin.rekey(progress=lambda now: bar.update(task, completed=now.done, total=now.total))


def _rows_left(done: RekeyProgress) -> str:
    """Return the message about rows that a rekey leaves as they are."""
    return (
        f"{counted(done.remaining, 'connection is', 'connections are')} left as before: {done.plain_text} in plain "
        f"text, which this service refuses, {done.unknown_key} under keys that the ring lacks, {done.unreadable} "
        "damaged or altered; spotconn doctor says what to do"
    )
