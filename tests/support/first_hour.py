"""The page of the first hour as a script: its commands are run, and what they print is compared with it.

`python tests/support/first_hour.py` writes the page anew from what the commands print.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from typer.testing import CliRunner

from spotconn.cli import app
from spotconn.testing import EmbeddedPostgres
from support.doc_blocks import blocks

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "first-hour.md"
BROWSER = Path(__file__).with_name("agreeing_browser.py")
DATABASE, SPOTIFY = "127.0.0.1:5432", "127.0.0.1:8769"
"""Where both are on the page."""

_BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
_VARIES = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "USER"),
    (re.compile(r"http://127\.0\.0\.1:\d+"), "URL"),
    (re.compile(r"(?<=authorize\?)\S+"), "QUERY"),
    (re.compile(r"\bBQ[\w-]{60,}"), "TOKEN"),
    (re.compile(r"\d{4}-\d\d-\d\d(T[\d:.]+Z| [\d:.]+ UTC| [\d:.+]+)?"), "TIME"),
    (re.compile(r"\b[0-9a-f]{8}\b"), "KEY"),
    (re.compile(r"[\d.]+ s (ahead of|behind)"), "SECONDS"),
    (re.compile(r"PostgreSQL [\d.]+( \(.*\))?"), "SERVER"),
)

Command = Callable[[list[str], Mapping[str, str]], tuple[int, str]]
"""Runs `spotconn` with arguments and an environment: its exit code, and what it prints."""


class Step(NamedTuple):
    """A line behind the prompt, and what is printed for it."""

    line: str
    printed: str


def steps(text: str) -> list[Step]:
    """Return the steps of a console block."""
    return [Step(*part.partition("\n")[::2]) for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]


def compared(text: str) -> str:
    """Return what is printed without what differs from run to run."""
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return text


def in_process(arguments: list[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """Run the command in this process, which starts no interpreter."""
    unset = dict.fromkeys((name for name in os.environ if name.startswith(("SPOT", "DATABASE_URL", "PG"))), None)
    done = CliRunner().invoke(app, arguments, prog_name="spotconn", env={**unset, **environ})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def as_process(*program: str) -> Command:
    """Return what runs the command as a process of its own, in the given environment alone."""

    def run(arguments: list[str], environ: Mapping[str, str]) -> tuple[int, str]:
        done = subprocess.run(
            [*program, *arguments],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=100,
        )
        return done.returncode, done.stdout

    return run


class Shell:
    """Runs the lines of the page: exports, `spotconn`, `python` with a file of the page, and `echo $?`.

    Args:
        command: runs `spotconn`.
        environ: variables to begin with, whose values the page does not set.
        simulate: the start of the command that serves the simulated Spotify.
    """

    def __init__(self, command: Command, environ: Mapping[str, str], simulate: list[str]) -> None:
        self._command = command
        self._environ = dict(environ)
        self._given = frozenset(environ)
        self._simulate = simulate
        self._files = {block.title: block.code for block in blocks(PAGE) if block.title}
        self._server: subprocess.Popen[str] | None = None
        self._code = 0

    def run(self, line: str) -> str:
        """Return what a line prints."""
        line = line.replace(DATABASE, urlsplit(self._environ["DATABASE_URL"]).netloc.rpartition("@")[2])
        if line == "echo $?":
            return f"{self._code}\n"
        if line.startswith("export "):
            return self._export(line.removeprefix("export "))
        if line.endswith(" &"):
            return self._serve()
        return self._spotconn(line)

    def printed(self, line: str) -> str:
        """Return the same with the address of the page."""
        printed = self.run(line)
        return printed.replace(urlsplit(self._environ.get("SPOTCONN_SPOTIFY_URL", "")).netloc or SPOTIFY, SPOTIFY)

    def stop(self) -> None:
        """End what was started in the background."""
        if self._server is not None:
            self._server.terminate()
            self._server.communicate(timeout=60)

    def _export(self, assignment: str) -> str:
        name, _, value = assignment.partition("=")
        if name not in self._given:
            self._environ[name] = re.sub(r"\$\((.+?)\)|\$(\w+)", self._substituted, value).strip("'")
        return ""

    def _substituted(self, found: re.Match[str]) -> str:
        if found[2]:
            return self._environ[found[2]]
        program, *arguments = shlex.split(found[1])
        if program == "spotconn":
            return self._command(arguments, self._environ)[1].splitlines()[0]
        code = self._files[arguments[0]]
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | self._environ,
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        return done.stdout.strip()

    def _serve(self) -> str:
        guard = [setpriv, "--pdeathsig", "TERM"] if (setpriv := shutil.which("setpriv")) else []
        server = self._server = subprocess.Popen(
            [*guard, *self._simulate, "simulate", "--port", "0"],
            env=os.environ | self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert server.stdout is not None
        printed = [server.stdout.readline() for _ in range(4)]
        self._environ["SPOTCONN_SPOTIFY_URL"] = printed[0].strip().partition("=")[2]
        self._given |= {"SPOTCONN_SPOTIFY_URL"}
        return "".join(printed)

    def _spotconn(self, line: str) -> str:
        words = shlex.split(re.sub(r"\$(\w+)", lambda name: self._environ[name[1]], line))
        assigned = dict(word.split("=", 1) for word in words[: words.index("spotconn")])
        arguments = words[words.index("spotconn") + 1 :]
        self._code, printed = self._command(arguments, self._environ | assigned)
        return printed


@contextmanager
def shell(command: Command, environ: Mapping[str, str], simulate: list[str]) -> Generator[Shell]:
    """Context manager: a shell beside a Postgres of its own, which has nothing."""
    with EmbeddedPostgres() as server:
        given = {"DATABASE_URL": server.dsn(), "BROWSER": f"{sys.executable} {BROWSER} alice %s"}
        opened = Shell(command, {**environ, **given}, simulate)
        try:
            yield opened
        finally:
            opened.stop()


def differences(opened: Shell) -> Iterator[tuple[str, str, str]]:
    """Run the page and yield the lines that print something else, with what stands there and what is printed."""
    for block in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        for step in steps(block):
            printed = opened.run(step.line)
            if compared(printed) != compared(step.printed):
                yield step.line, step.printed, printed


def _written(opened: Shell, text: str) -> str:
    def block(found: re.Match[str]) -> str:
        lines = (step.line for step in steps(found[0]))
        return "".join(f"$ {line}\n{opened.printed(line)}" for line in lines)

    return _BLOCK.sub(block, text)


def _write() -> None:
    with (
        tempfile.TemporaryDirectory() as home,
        shell(in_process, {"HOME": home}, [sys.executable, "-m", "spotconn"]) as opened,
    ):
        PAGE.write_text(_written(opened, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _write()
