"""The command `spotconn`.

Exit codes: 0 done; 1 `doctor` found something to mend; 2 wrong usage; 3 the user must connect; 4 try later;
5 settings, schema, grants or keys are wrong; 6 the output cannot be written; 7 `rekey` or `migrate` is done but
for some rows; 130 stopped with Ctrl-C. Results go to standard output, all else to standard error.
"""

from typing import Annotated

import typer

from spotconn import __version__
from spotconn._command.assign_app import assign_app
from spotconn._command.connect import connect
from spotconn._command.keys import keygen, rekey
from spotconn._command.lists import expiring, failing, stats
from spotconn._command.mark_asked import mark_asked
from spotconn._command.migrate import migrate
from spotconn._command.one_user import disconnect, move, status, token
from spotconn._command.output import output_errors, write_line
from spotconn._command.prune import prune
from spotconn._command.recheck import recheck
from spotconn._command.report import doctor
from spotconn._command.schema import schema
from spotconn._command.simulate import simulate

app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks would print local variables
    help="Stored Spotify connections: the database, the keys and the users' tokens.",
    epilog="Exit codes: 0 done, 1 doctor found something to mend, 2 wrong usage, 3 the user must connect, "
    "4 try later, 5 settings, schema, grants or keys are wrong, 6 the output cannot be written, "
    "7 rekey or migrate is done but for some rows, 130 stopped with Ctrl-C.",
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001  typer calls it
    if wanted:
        write_line(f"spotconn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")
    ] = False,
) -> None:
    pass


# In the order of the help.
app.command()(migrate)
app.command()(schema)
app.command()(doctor)
app.command()(keygen)
app.command()(connect)
app.command()(status)
app.command()(token)
app.command()(disconnect)
app.command()(stats)
app.command()(expiring)
app.command()(mark_asked)
app.command()(failing)
app.command()(rekey)
app.command()(recheck)
app.command()(prune)
app.command()(assign_app)
app.command()(move)
app.command()(simulate)


def main() -> None:
    """Run the command. Help ends like a result where it cannot be written."""
    with output_errors():
        app(prog_name="spotconn")
