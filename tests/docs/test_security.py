"""SECURITY.md and the page of attacks: each promise and each attack names a test, and the test is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECURITY = ROOT / "SECURITY.md"
ATTACKS = ROOT / "docs" / "attacks.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
ROW = re.compile(r"\| \d+ \| ")


@cache
def _tests(file: str) -> frozenset[str]:
    """Return the names of the tests of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def _items(title: str) -> list[str]:
    """Return the list items of a section of SECURITY.md, each on one line."""
    section = SECURITY.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    return [" ".join(item.split()) for item in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]


def _missing(text: str) -> list[str]:
    """Return the tests that a text names and that are not there."""
    named = TEST.findall(text)
    return [
        f"{file}::{test}" for file, test in named if not (ROOT / file).is_file() or (test and test not in _tests(file))
    ]


@pytest.mark.parametrize("promise", _items("What holds"), ids=lambda promise: promise[:40])
def test_each_promise_names_its_tests(promise: str) -> None:
    """A promise of SECURITY.md names the tests that show it, by file and name, and they are there."""
    assert [test for _, test in TEST.findall(promise) if test], promise
    assert _missing(promise) == []


def test_each_attack_has_its_test() -> None:
    """Each attack of the page names a test that is there, and each file of tests/attacks is named."""
    text = ATTACKS.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if ROW.match(line)]
    assert {int(row.split("|")[1]) for row in rows} == {*range(1, 22), 32}
    assert [row for row in rows if not TEST.search(row)] == []
    assert _missing(text) == []
    named = {file for file, _ in TEST.findall(text)}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "attacks").glob("test_*.py")}
    assert there - named == set()
