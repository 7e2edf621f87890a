"""Looks through a built site for what leads nowhere and for what comes from another host: `site_check.py FOLDER`.

The strict build looks at the links between pages of Markdown; this looks at the HTML that came of it, so also at
pictures, at links written as HTML, at headings from docstrings, and at what a page makes a browser load.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

EVERYWHERE = {"", "top"}
"""Fragments that need no element (HTML, "scroll to the fragment")."""

MARKDOWN = ("```", "!!! ", "::: ", "--8<--")
"""What begins a line of Markdown and never one that is shown: most often its indentation was wrong."""

LINE = 60
"""Columns that a signature on one line may have."""

TWO_ARGUMENTS = re.compile(r"(\w: .*|\*), \w+: ")
"""In a line of a signature that has several: the formatter of signatures is not installed, or its setting is gone."""


class Page(NamedTuple):
    """What one page offers and asks for.

    Attributes:
        ids: the fragments that lead somewhere.
        links: where a reader can go.
        loads: what a browser fetches to show the page.
        references: names that should have become links and did not.
        unread: lines of Markdown that were not read as such.
        signatures: of functions and classes.
    """

    ids: set[str]
    links: list[str]
    loads: list[str]
    references: list[str]
    unread: list[str]
    signatures: list[str]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page(set(), [], [], [], [], [])
        self.in_signature = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.page.ids.update(given[name] for name in ("id", "name") if name in given)
        if "href" in given:
            (self.page.links if tag == "a" else self.page.loads).append(given["href"])
        self.page.loads.extend(given[name] for name in ("src", "poster", "data") if name in given)
        self.page.loads.extend(part.split()[0] for part in given.get("srcset", "").split(",") if part.strip())
        if tag == "div" and "doc-signature" in given.get("class", ""):
            self.page.signatures.append("")
            self.in_signature = True
        if tag == "autoref":
            self.page.references.append(given.get("identifier", ""))

    def handle_endtag(self, tag: str) -> None:
        self.in_signature = self.in_signature and tag != "div"

    def handle_data(self, data: str) -> None:
        if self.in_signature:
            self.page.signatures[-1] += data
        self.page.unread.extend(line.strip() for line in data.splitlines() if line.strip().startswith(MARKDOWN))


def read_page(file: Path) -> Page:
    """What a page offers and asks for."""
    reader = _Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    reader.close()
    return reader.page


def faults(site: Path) -> Iterator[str]:
    """Each fault of a site, with the page that has it."""
    pages = {file: read_page(file) for file in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: no page is there"
    for file, page in pages.items():
        found = [*_lost(site, pages, file), *_foreign(page)]
        found += [f"no such reference: {name}" for name in page.references]
        found += [f"Markdown that was not read: {line}" for line in page.unread]
        found += [f"a signature is not one argument a line: {line.strip()}" for line in _packed(page)]
        yield from (f"{file.relative_to(site)}: {fault}" for fault in found)


def _lost(site: Path, pages: dict[Path, Page], file: Path) -> Iterator[str]:
    for url in pages[file].links + pages[file].loads:
        parts = urlsplit(url)
        if parts.scheme or parts.netloc:
            continue
        target = _target(site, file, unquote(parts.path))
        if not target.is_file():
            yield f"leads nowhere: {url}"
        elif target in pages and unquote(parts.fragment) not in pages[target].ids | EVERYWHERE:
            yield f"no such place on that page: {url}"


def _packed(page: Page) -> Iterator[str]:
    for signature in page.signatures:
        lines = signature.strip().splitlines()
        yield from (line for line in lines if TWO_ARGUMENTS.search(line) and (len(lines) > 1 or len(line) > LINE))


def _target(site: Path, file: Path, path: str) -> Path:
    start = site if path.startswith("/") else file.parent
    target = (start / path.lstrip("/")).resolve() if path else file
    return target / "index.html" if target.is_dir() else target


def _foreign(page: Page) -> Iterator[str]:
    for url in page.loads:
        parts = urlsplit(url)
        if parts.netloc or parts.scheme not in {"", "data"}:
            yield f"is loaded from elsewhere: {url}"


def main(folder: str) -> int:
    """Print the faults; 1 if there are any."""
    site = Path(folder).resolve()
    found = list(faults(site))
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(list(site.rglob('*.html')))} pages, {len(found)} faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
