"""A search for names of this project's own making that gave way to the words of the field.

- Identifiers that are defined (classes, functions, arguments, variables, attributes) are found by `ast` in the Python
  files of src and examples, and in the blocks of Python in Markdown pages.
- SQL names are all words of sql outside of comments and texts.
- Headings are those of Markdown pages.

    PYTHONPATH=src:tests python tests/support/glossary.py
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.doc_blocks import blocks

ROOT = Path(__file__).parents[2]

PARTS = {
    "hear heard hearer hearing hears": "subscriber, subscription, subscribe, on_change",
    "telling told": "subscribe, notify_change, report",
    "proof prove proven": "heartbeat",
    "cover covered uncover horizon": "trust, distrust, trusted_until",
    "remembered": "cache entry",
    "kept": "unsaved grant",
    "lent": "borrow",
    "fitted": "is_pooled",
    "guarded": "scrub",
    "patient": "probe",
    "tally": "progress",
    "witness": "recorder",
}
"""Words that must not be any part of a name, and the field's words for them."""

WHOLE = {
    "fill filling": "pending read, reading",
    "brings": "is_current",
    "discard": "invalidate",
    "keep kept_grants": "unsaved grants",
    "pause pauses host_pauses grow": "backoff, failed",
    "left": "remaining",
    "gate enter answered": "throttle, circuit breaker",
    "acquired": "acquire",
    "translated": "map_errors",
    "bounded": "within",
    "closed_if_it_fails": "terminate_on_error",
    "guarded_within forget_locals": "scrub",
    "tried": "attempt",
    "tell tell_change prove_telling readers": "a name for what is reported or checked",
    "many_tokens serving pass": "batch, policy, run",
    "at_once": "from_row",
    "say": "print_line",
    "asked": "get_json, or a name for what it does",
    "world": "harness",
    "stage": "demo_services",
}
"""Names that must not be whole names; as a part of another name they may be plain English."""

ALLOWED = {
    ("src/spotconn/errors.py", "answered"): "public: an argument and an attribute of SpotifyUnavailable",
    ("sql/plain_postgres.sql", "left"): "SQL's own word: left join",
    ("sql/schema.sql", "left"): "SQL's own word: left join",
}
"""Where a name stays, and why."""

_OLD_SQL_NAME = re.compile(r"^drop \w+ if exists [^;]*;$", re.MULTILINE)
"""Statements that remove what version 2 of the schema had, which they have to name."""
_SQL_COMMENT_OR_TEXT = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)


class Finding(NamedTuple):
    """A name that should be another.

    Attributes:
        file: its path from the root of the project.
        line: where it stands, counted from 1.
        name: as it stands there.
        instead: the field's words.
    """

    file: str
    line: int
    name: str
    instead: str


def findings(root: Path) -> Iterator[Finding]:
    """Yield what is found in src, examples, sql, docs and the pages beside them."""
    for file, line, name in _names(root):
        path = str(file.relative_to(root))
        instead = advice(name)
        if instead is not None and (path, name) not in ALLOWED:
            yield Finding(path, line, name, instead)


def advice(name: str) -> str | None:
    """Return the field's words for a name of ours, None for any other name."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    for ours, instead in PARTS.items():
        if not set(words).isdisjoint(ours.split()):
            return instead
    whole = "_".join(words)
    return next((instead for ours, instead in WHOLE.items() if whole in ours.split()), None)


def _names(root: Path) -> Iterator[tuple[Path, int, str]]:
    for file in sorted([*root.glob("src/**/*.py"), *root.glob("examples/**/*.py")]):
        yield from ((file, line, name) for line, name in _defined(file.read_text()))
    for file in sorted(root.glob("sql/*.sql")):
        yield from ((file, line, name) for line, name in _sql_words(file.read_text()))
    for file in sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")]):
        yield from ((file, line, name) for line, name in _heading_words(file.read_text()))
        for block in blocks(file):
            yield from ((file, block.line + line, name) for line, name in _defined(block.code))


def _defined(code: str) -> Iterator[tuple[int, str]]:
    """Yield the names that Python code defines; those of Python itself (`__enter__`) are no choice of ours."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                pass
            case ast.arg(arg=name) | ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                pass
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                pass
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                pass
            case _:
                continue
        if not name.startswith("__"):
            yield node.lineno, name


def _sql_words(text: str) -> Iterator[tuple[int, str]]:
    for pattern in (_OLD_SQL_NAME, _SQL_COMMENT_OR_TEXT):
        text = pattern.sub(lambda found: "\n" * found[0].count("\n"), text)
    return _words(text)


def _heading_words(text: str) -> Iterator[tuple[int, str]]:
    # A comment within a block of code is no heading.
    outside = re.sub(r"^```.*?^```", lambda found: "\n" * found[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    return _words("\n".join(line if line.startswith("#") else "" for line in outside.split("\n")))


def _words(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        yield from ((number, word) for word in re.findall(r"[A-Za-z_]+", line))


def main(root: Path = ROOT) -> int:
    """Print what is found; return an exit status."""
    found = list(findings(root))
    for file, line, name, instead in found:
        print(f"{file}:{line}: {name}: rather {instead}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
