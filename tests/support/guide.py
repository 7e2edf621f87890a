"""The blocks of SQL in a guide, for the tests that run them."""

from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt

GUIDES = Path(__file__).parents[2] / "docs" / "how-to"


def sql_blocks(name: str) -> Iterator[str]:
    """Yield the blocks of SQL of a guide, in their order."""
    for token in MarkdownIt().parse((GUIDES / name).read_text(encoding="utf-8")):
        if token.type == "fence" and token.info.strip() == "sql":
            yield token.content
