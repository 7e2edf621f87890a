"""The documentation site: it builds strictly, leads nowhere wrong and loads nothing from elsewhere."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
from starlette.staticfiles import StaticFiles

import spotconn.blocking
import spotconn.telemetry
import spotconn.testing
import spotconn.web
from hatch_build import SETTING, ReadmeHook
from spotconn.testing._server import serve
from support import site_check
from support.browser import Person, launched

ROOT = Path(__file__).parents[2]

GOOD = """
<h1 id="top-of-it">One</h1> <a href="two/#part">two</a> <a href="#top-of-it">up</a> <a href="https://example.com/x">away</a>
<link href="/style.css"> <img src="data:image/png;base64,AA==">
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site of two pages without a fault."""
    (tmp_path / "two").mkdir()
    (tmp_path / "index.html").write_text(GOOD)
    (tmp_path / "two" / "index.html").write_text('<p id="part"><a href="../">back</a></p>')
    (tmp_path / "style.css").write_text("")
    return tmp_path


def test_a_good_site_has_no_faults(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links to pages, parts of pages and other hosts are fine, and so are pictures within the page."""
    assert site_check.main(str(site)) == 0
    assert capsys.readouterr().out == "2 pages, 0 faults\n"


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="../three/">', "leads nowhere: ../three/"),
        ('<a href="../#nothing">', "no such place on that page: ../#nothing"),
        ('<a href="#nothing">', "no such place on that page: #nothing"),
        ('<img src="../picture.png">', "leads nowhere: ../picture.png"),
        ('<img srcset="../style.css 1x, ../b.png 2x">', "leads nowhere: ../b.png"),
        ('<script src="https://cdn.example.com/x.js">', "is loaded from elsewhere: https://cdn.example.com/x.js"),
        ('<link href="//fonts.example.com">', "is loaded from elsewhere: //fonts.example.com"),
        ("<p>words\n```console\nls", "Markdown that was not read: ```console"),
        ('<autoref identifier="spotconn.Nothing">', "no such reference: spotconn.Nothing"),
        (
            '<div class="doc-signature"><code>f(\n  <b>a</b>: A, *, c: C = 1\n)</code></div>',
            "a signature is not one argument a line: a: A, *, c: C = 1",
        ),
    ],
)
def test_a_fault_is_named_with_its_page(site: Path, html: str, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A dead link, a missing picture, a foreign script: each is told, and the check fails."""
    (site / "two" / "index.html").write_text(f'<p id="part">{html}</p>')
    assert site_check.main(str(site)) == 1
    assert capsys.readouterr().out.splitlines() == [f"two/index.html: {fault}", "2 pages, 1 faults"]


def test_an_empty_site_is_a_fault(tmp_path: Path) -> None:
    """A build that made nothing does not pass."""
    assert site_check.main(str(tmp_path)) == 1


def test_every_page_is_in_the_navigation() -> None:
    """No page of Markdown is left lying where no reader comes."""
    configuration = (ROOT / "zensical.toml").read_text()
    docs = ROOT / "docs"
    for page in docs.rglob("*.md"):
        assert f'"{page.relative_to(docs)}"' in configuration, page


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real site, built as `make docs` does, from a copy of what it is made of."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(Path(spotconn.__file__).parent, folder / "src" / "spotconn")
    for name in ("zensical.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "griffe:" not in done.stdout + done.stderr, done.stderr  # a docstring that could not be read
    return folder / "site"


@pytest.mark.long
def test_the_site_has_no_faults(built: Path) -> None:
    """The strict build passes, and nothing in the built site leads nowhere or comes from another host."""
    assert list(site_check.faults(built)) == []


@pytest.mark.long
def test_every_public_name_is_in_the_reference(built: Path) -> None:
    """Whatever can be imported has a place in the reference that a link can lead to."""
    pages = [site_check.read_page(file) for file in (built / "reference").rglob("*.html")]
    places = set[str]().union(*(page.ids for page in pages))
    for package in (spotconn, spotconn.blocking, spotconn.telemetry, spotconn.testing, spotconn.web):
        assert {f"{package.__name__}.{name}" for name in package.__all__} <= places


@pytest.mark.long
def test_what_an_index_shows_leads_to_the_site(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the wheel is built with the address of the site, each link and picture of the README is a place there."""
    monkeypatch.setenv(SETTING, "https://site.example/")
    metadata: dict[str, Any] = {}
    ReadmeHook(str(ROOT), {}).update(metadata)
    addresses = re.findall(r"\]\(https://site.example/([^()\s]*)\)", metadata["readme"]["text"])
    assert len(addresses) > 30
    for address in [*addresses, *(url.removeprefix("https://site.example/") for url in metadata["urls"].values())]:
        path, _, place = address.partition("#")
        page = built / path / "index.html" if not path or path.endswith("/") else built / path
        assert page.is_file(), address
        assert not place or place in site_check.read_page(page).ids, address


@pytest.mark.long
async def test_no_page_loads_anything_from_another_host(built: Path) -> None:
    """A browser that shows a page of each kind asks nobody but the host that serves it, and meets no error."""
    async with (
        serve(StaticFiles(directory=built, html=True)) as url,
        launched() as browser,
        await browser.new_context() as context,
    ):
        visitor = Person(url, context)
        page = await context.new_page()
        for path in ("", "tutorial/", "architecture/", "reference/manager/"):
            await page.goto(f"{url}/{path}", wait_until="networkidle")
        assert visitor.hosts == {"127.0.0.1"}
        assert visitor.errors == []


def test_the_examples_that_guides_import_are_shown_whole() -> None:
    """The page of the examples includes them, and what they import in turn."""
    files = {file.stem: file for file in (ROOT / "examples").glob("*.py")}
    pages = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    shown = set(re.findall(r"^examples/(\w+)\.py$", pages, re.MULTILINE))
    texts = [*(files[name].read_text() for name in shown), *re.findall(r"```python\n(.*?)```", pages, re.DOTALL)]
    imported = set(re.findall(r"^from (\w+) import", "\n".join(texts), re.MULTILINE))
    assert {"tekore_client", "demo_services"} <= files.keys() & imported <= shown


WIDE = """() => [...document.querySelectorAll('article pre > code, article table')].filter(
    place => place.scrollWidth > place.clientWidth + 1 || place.clientWidth > place.closest('article').clientWidth
).map(place => place.textContent)"""
"""Code and tables that are wider than their place."""

BROKEN = """() => [...document.querySelectorAll('td:first-child:not([data-heading="text"]) code')].filter(
    name => name.getClientRects().length > 1).map(name => name.textContent)"""
"""Names in the first column of a table that are broken in the middle; the text of an error may be."""

CELLS = """() => [...document.querySelectorAll('article tbody td:not(:empty)')].map(cell => [
    cell.clientWidth, cell.cellIndex ? getComputedStyle(cell, '::before').content : '""', cell.dataset.heading])"""
"""Of each cell: its width, what is shown before it, and the heading of its column."""


LAPTOP = (
    "",
    "examples/",
    "how-to/failover/",
    "how-to/supabase-connections/",
    "how-to/telemetry/",
    "reference/error-texts/",
    "reference/manager/",
)
"""Pages with the widest code, tables, names, texts and signatures."""


@pytest.mark.long
async def test_pages_fit_a_laptop_and_a_phone(built: Path) -> None:
    """On a laptop no code is cut and no name broken; on a phone no page is wider, and cells have a heading."""
    async with serve(StaticFiles(directory=built, html=True)) as url, launched() as browser:
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        for path in LAPTOP:
            await page.goto(f"{url}/{path}")
            assert await page.evaluate(WIDE) == [], path
            assert await page.evaluate(BROKEN) == [], path
        await page.set_viewport_size({"width": 375, "height": 812})
        for path in ("architecture/", "reference/error-texts/", "reference/manager/"):
            await page.goto(f"{url}/{path}")
            assert await page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), path
            for width, label, heading in await page.evaluate(CELLS):
                assert width > 280, path
                assert label in {'""', f'"{heading}"'}, path
        await page.goto(f"{url}/architecture/")
        widths = "[...document.querySelectorAll('article img')].map(drawing => drawing.width)"
        assert min(await page.evaluate(widths)) > 700


def _floors() -> list[set[str]]:
    """The names of each floor of the picture of the rooms, from the top."""
    picture = (ROOT / "docs" / "images" / "rooms.svg").read_text()
    floors: dict[int, set[str]] = {}
    for height, name in re.findall(r'<text class="code" x="[\d.]+" y="(\d+)"[^>]*>(\w+)</text>', picture):
        floors.setdefault(int(height), set()).add(name)
    return [floors[height] for height in sorted(floors)]


def test_the_picture_of_the_rooms_shows_every_module_and_room() -> None:
    """A public module, a private room or a shared piece that is added is drawn, and nothing else is."""
    assert set[str]().union(*_floors()) == {module.name for module in iter_modules(spotconn.__path__)}


def test_the_floors_of_the_picture_are_those_of_the_contract() -> None:
    """Modules on one floor may not import each other; a module may import those on the floors below."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    assert _floors() == [set(layer.split(" | ")) for layer in contract["layers"]]


def test_every_private_room_is_explained() -> None:
    """The page on the architecture says what each private package holds."""
    rooms = {module.name for module in iter_modules(spotconn.__path__) if module.ispkg and module.name.startswith("_")}
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert {name for name in rooms if f"| `{name}` |" in page} == rooms
