"""Names are the field's: none of ours that gave way is back."""

from pathlib import Path

import pytest

from support.glossary import ALLOWED, ROOT, findings, main


def test_no_name_of_our_own_making_is_back() -> None:
    """No identifier of src and examples, no SQL name and no heading is one that the glossary has replaced."""
    assert list(findings(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "text", "line", "name"),
    [
        ("src/spotconn/new.py", "class KeptGrants:\n    pass\n", 1, "KeptGrants"),
        ("src/spotconn/_tokens/new.py", "async def f():\n    async def _prove(): ...\n", 2, "_prove"),
        ("src/spotconn/new.py", "def f(*, left: float): ...\n", 1, "left"),
        ("src/spotconn/new.py", "class A:\n    def __init__(self):\n        self._told = 1\n", 3, "_told"),
        ("src/spotconn/new.py", "if (heard_from := 1):\n    pass\n", 1, "heard_from"),
        ("src/spotconn/new.py", "from a import borrow as lent\n", 1, "lent"),
        ("examples/new.py", "def say(text): ...\n", 1, "say"),
        ("sql/schema.sql", "-- told\ncreate function spotconn.tell_change() returns trigger\n", 2, "tell_change"),
        ("docs/how-to/new.md", "# Title\n\ntext\n\n## The proof of it\n", 5, "proof"),
        ("docs/new.md", "# Title\n\n```python\nx = 1\nwitness = x\n```\n", 5, "witness"),
        ("README.md", "# What is covered\n", 1, "covered"),
    ],
)
def test_a_planted_name_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, line: int, name: str
) -> None:
    """Each kind of definition, an SQL name and a heading: all are found with their place."""
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(text)
    assert [found[:3] for found in findings(tmp_path)] == [(file, line, name)]
    assert main(tmp_path) == 1
    assert capsys.readouterr().out.startswith(f"{file}:{line}: {name}: rather ")


def test_plain_english_is_no_finding(tmp_path: Path) -> None:
    """Names of Python, uses of names, comments, texts, names that SQL drops, prose and parts of words stay."""
    for file, text in {
        "src/new.py": "# told\nclass A:\n    'heard'\n    def __enter__(self): self.on(kept)\n    keep_alive = 1\n",
        "sql/new.sql": "drop function if exists spotconn.tell_change();\n-- a proof\nselect 'kept';\n",
        "docs/new.md": "# Title\n\nWhat is told.\n\n```console\n# kept\n```\n",
    }.items():
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text)
    assert list(findings(tmp_path)) == []
    assert main(tmp_path) == 0


def test_each_exception_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allowed is there, and has its reason."""
    allowed = {place: reason for place, reason in ALLOWED.items() if (ROOT / place[0]).exists()}  # a wheel has no src
    monkeypatch.setattr("support.glossary.ALLOWED", {})
    found = {(finding.file, finding.name) for finding in findings(ROOT)}
    assert allowed.keys() <= found
    assert all(allowed.values())
