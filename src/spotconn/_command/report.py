"""The report of `spotconn doctor`: its findings, written for people or for programs."""

from collections.abc import Mapping
from contextlib import aclosing

from rich.console import Console
from rich.text import Text

from spotconn._command.doctor import examine
from spotconn._command.finding import Finding
from spotconn._command.output import write, write_json
from spotconn._printable import printable

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}
"""Of a terminal, by the state of a finding."""


async def report(environ: Mapping[str, str], *, as_json: bool) -> bool:
    """Write the findings as they come, and return whether there is something to mend.

    Args:
        environ: as `os.environ`.
        as_json: for programs.
    """
    console, unhealthy = Console(highlight=False, soft_wrap=True), False
    async with aclosing(examine(environ)) as findings:  # the process may end at a line, and the session before it
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
