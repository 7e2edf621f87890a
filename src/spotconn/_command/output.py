"""Results on standard output, and messages in one line on standard error, whatever their encoding and contents.

Tenants write names, addresses and ids. So control characters are shown, not sent to the terminal, a field of a line is
cut where it is long, and what the encoding of a stream lacks is written as an escape sequence of Python. JSON is for
programs: it is ASCII, and has each text whole.
"""

import json
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NoReturn, TextIO, cast

from pydantic import BaseModel

from spotconn._printable import LONGEST_FIELD, printable, shown

UNHEALTHY, USAGE, ASK_USER, TRY_LATER, CALL_ENGINEER, OUTPUT_LOST, ROWS_LEFT, STOPPED = 1, 2, 3, 4, 5, 6, 7, 130
"""Exit codes."""
LONGEST_MESSAGE = 4_000
"""Characters of a message on standard error."""


def write_line(line: str) -> None:
    """Write one line of the result."""
    write(printable(line) + "\n")


def write_field(name: str, value: object, *, longest: int = LONGEST_FIELD) -> None:
    """Write a name and a value, which others may have written, as one line of the result."""
    write_line(f"{shown(name)}: {shown(str(value), longest)}")


def write_json(value: BaseModel | dict[str, Any]) -> None:
    """Write a value as one line of JSON in ASCII."""
    given = value if isinstance(value, dict) else value.model_dump()
    write(json.dumps(given, default=plain) + "\n")


def plain(value: object) -> list[str] | str:
    """Return what JSON can hold of a value: of a set its sorted list, of a time its text.

    Times are by RFC 3339, in UTC and all of one length, so that their texts sort as they do.
    """
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return sorted(cast("frozenset[str]", value)) if isinstance(value, frozenset) else str(value)


def write(text: str) -> None:
    """Write a part of the result to standard output at once. All results take this way.

    Where the reader has gone the process ends with 0, and where the output is closed or full with `OUTPUT_LOST`.

    Args:
        text: of the library's own, of any number of lines; control characters in it are sent.
    """
    if sys.stdout is None or sys.stdout.closed:  # Python has no stream where it began without one
        _lost("it is closed")
    with output_errors():
        sys.stdout.write(_encodable(text, sys.stdout))
        sys.stdout.flush()


@contextmanager
def output_errors() -> Generator[None]:
    """Context manager: end the process where standard output cannot be written."""
    try:
        yield
    except BrokenPipeError:
        _silence(sys.stdout)
        sys.exit(0)
    except OSError as error:
        if error.filename is not None:  # of a file, not of the output
            raise
        _silence(sys.stdout)
        _lost(os.strerror(error.errno) if error.errno else type(error).__name__)


def _lost(why: str) -> NoReturn:
    fail(f"standard output cannot be written: {why}; what the command did stays done", OUTPUT_LOST)


def fail(text: str, code: int) -> NoReturn:
    """End the command with one line on standard error."""
    print_line(f"spotconn: {' '.join(text.split())}")
    sys.exit(code)


def print_line(text: str) -> None:
    """Print a message to standard error, or nothing where that cannot be written."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(_encodable(shown(text, LONGEST_MESSAGE), sys.stderr) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        _silence(sys.stderr)


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _silence(stream: TextIO | None) -> None:
    """Drop what a stream still holds. The interpreter would fail to flush it at exit, with a code of its own."""
    if stream is not None:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
