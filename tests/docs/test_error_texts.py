"""The page "What an error means and what to do" has every text that the library can raise, and no other."""

import builtins
import re
from collections import Counter
from pathlib import Path

from spotconn import errors
from support.error_texts import BUILTIN, SEEN_CALLS, SEEN_TEXTS, constructions, unclear_calls
from support.source_texts import ANY

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "error-texts.md"
SQL = "What the SQL files refuse"
ROW = re.compile(r"\| (`+)(.+?)\1 \| (.*?) \| (.*?) \|")
EXCEPTION = re.compile(r"raise exception '((?:[^']|'')+)'")
BRANCHES: dict[str, type[Exception] | tuple[type[Exception], ...]] = {
    "Ask the user": errors.AskUser,
    "Try later": errors.TryLater,
    "Call an engineer": errors.CallEngineer,
    "The caller's argument": (ValueError, TypeError),
}


def rows() -> list[tuple[str, str, str, str, str]]:
    """Return branch, class, text, meaning and remedy of each line of the page."""
    found: list[tuple[str, str, str, str, str]] = []
    branch = kind = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"(##+) (.+)", line):
            level, title = len(heading[1]), heading[2]
            branch, kind = (title, title) if level == 2 else (branch, title if level == 3 else kind)
        elif line.startswith("| `"):
            row = ROW.fullmatch(line)
            assert row, line
            found.append((branch, kind, row[2].strip(), row[3], row[4]))
    return found


def test_every_text_is_on_the_page() -> None:
    """Each text of the source has a line under its class, and each line has a text of the source."""
    described = {(kind, text) for _, kind, text, _, _ in rows() if kind != SQL}
    raised = {(one.kind, one.text): f"{one.file}:{one.line}" for one in constructions() if one.text != ANY}
    missing = [
        f"{place}: {kind}: {text}" for (kind, text), place in sorted(raised.items()) if (kind, text) not in described
    ]
    gone = [f"{kind}: {text}" for kind, text in sorted(described - raised.keys())]
    assert (missing, gone) == ([], []), f"lacking in {PAGE.name}: {missing}; no longer in the source: {gone}"


def test_every_refusal_of_the_sql_files_is_on_the_page() -> None:
    """What the SQL files raise has a line, and each line is raised there."""
    files = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "sql").glob("*.sql"))]
    raised = {text.replace("''", "'").replace("%", ANY) for file in files for text in EXCEPTION.findall(file)}
    assert {text for _, kind, text, _, _ in rows() if kind == SQL} == raised


def test_no_text_is_left_out_unseen() -> None:
    """Where the source shows no text, or no class, that is one of the few places whose reason is written down."""
    assert sorted((one.kind, one.file) for one in constructions() if one.text == ANY) == sorted(SEEN_TEXTS)
    assert sorted(unclear_calls()) == sorted(SEEN_CALLS)


def test_every_text_stands_once_with_a_meaning_and_a_remedy_in_its_branch() -> None:
    """No line is there twice, none has an empty column, and each class is in the branch that it derives from."""
    repeated = [row for row, count in Counter((kind, text) for _, kind, text, _, _ in rows()).items() if count > 1]
    empty = [text for *_, text, means, remedy in rows() if not (means.strip() and remedy.strip())]
    assert (repeated, empty) == ([], [])
    for branch, kind, *_ in rows():
        if branch in BRANCHES:
            assert issubclass(getattr(errors, kind, None) or getattr(builtins, kind), BRANCHES[branch]), kind
        else:
            assert kind in {*BUILTIN, SQL}, kind
