"""The code in a page of Markdown, found by a parser of CommonMark, so that no block is overlooked.

- A block of Python runs, with `await` where it needs it, in the one namespace of its page.
- A block of Python with a title (```python title="worker.py") is a file of that name, for a later block to run.
- A comment that begins with <!-- python is a block that a reader does not see: what comes before or after one they do.

A block that includes a file of examples/ is that file, which has tests of its own. Blocks of other languages are text;
the language has to be one of those named here. A block without a language, an indented one, and any other spelling of
Python are errors: they would be left out in silence.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import CO_COROUTINE
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

OTHER_LANGUAGES = {
    "console", "diff", "dockerfile", "dotenv", "html", "ini", "js", "json", "promql", "sql", "text", "toml", "yaml",
}  # fmt: skip

_HIDDEN = re.compile(r"<!-- python\n(.*?)-->\s*\Z", re.DOTALL)
_INCLUDED = re.compile(r"--8<--\nexamples/[\w./]+\n--8<--\n")
_TITLE = re.compile(r'python title="([\w.]+)"')


@dataclass(frozen=True)
class Block:
    """A block of Python.

    Attributes:
        page: where it stands.
        line: of its first line of code there, counted from 0.
        code: its text.
        title: the name of the file that it is; None for one that runs here.
    """

    page: Path
    line: int
    code: str
    title: str | None = None

    async def run(self, namespace: dict[str, Any]) -> None:
        """Run it; a traceback names the line of the page."""
        source = "\n" * self.line + self.code
        code = compile(source, str(self.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        outcome = eval(code, namespace)
        if code.co_flags & CO_COROUTINE:
            await outcome


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of Python of a page, in their order.

    Raises:
        ValueError: a block would be left out; the text names the line.
    """
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        first, _ = token.map or (0, 0)
        match token.type:
            case "fence":
                info = token.info.strip()
                if info == "python":
                    yield Block(page, first + 1, token.content)
                elif (titled := _TITLE.fullmatch(info)) and not _INCLUDED.fullmatch(token.content):
                    yield Block(page, first + 1, token.content, titled[1])
                elif not titled and info not in OTHER_LANGUAGES:
                    raise ValueError(f"{page}:{first + 1}: a block of {info or 'no language'}")
            case "code_block":
                raise ValueError(f"{page}:{first + 1}: an indented block")
            case "html_block":
                if hidden := _HIDDEN.match(token.content):
                    yield Block(page, first + 1, hidden[1])
                elif "python" in token.content.partition("\n")[0]:
                    raise ValueError(f"{page}:{first + 1}: a comment that nearly is a block of Python")
            case _:
                pass
