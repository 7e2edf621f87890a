"""The command `spotconn doctor`: its findings, written for people or for programs."""

import os
from collections.abc import Mapping
from contextlib import aclosing
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from spotconn._command.arguments import Json
from spotconn._command.console import run
from spotconn._command.doctor import examine
from spotconn._command.finding import Finding
from spotconn._command.output import UNHEALTHY, write, write_json
from spotconn._printable import printable

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}
"""Of a terminal, by the state of a finding."""


def doctor(
    *,
    online: Annotated[bool, typer.Option("--online", help="Also ask Spotify about the apps, and of no user.")] = False,
    as_json: Json = False,
) -> None:
    """Look at settings, database, row security, rights and clocks, and say what mends what is wrong."""
    if run(_report(os.environ, online=online, as_json=as_json)):
        raise typer.Exit(UNHEALTHY)


async def _report(environ: Mapping[str, str], *, online: bool, as_json: bool) -> bool:
    """Write the findings as they come, and return whether there is something to mend.

    Args:
        environ: as `os.environ`.
        online: whether to ask Spotify.
        as_json: for programs.
    """
    console, unhealthy = Console(highlight=False, soft_wrap=True), False
    # The process may end at a line, and the session before it.
    async with aclosing(examine(environ, online=online)) as findings:
        async for finding in findings:
            unhealthy |= finding.state == "fail"
            if as_json:
                write_json(finding)
                continue
            with console.capture() as captured:
                console.print(_lines(finding))
            write(captured.get())
    return unhealthy


def _lines(finding: Finding) -> Text:
    text = printable(f"{finding.subject}: {finding.text}")
    lines = Text.assemble((f"{finding.state:5}", COLOURS[finding.state]), text)
    if finding.remedy and finding.state in {"warn", "fail"}:
        lines.append(f"\n     -> {printable(finding.remedy)}")
    return lines
