"""What the package promises as a distribution: one version, its files, its commands, its dependencies."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from importlib.metadata import EntryPoint, distribution, packages_distributions
from importlib.resources import files
from pathlib import Path
from pkgutil import iter_modules
from typing import get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import spotconn
from spotconn._database.schema import SqlFile, read_sql

ROOT = Path(__file__).parents[2]
PACKAGE = Path(spotconn.__file__).parent
INSTALLED = distribution("spotconn")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = set(PROJECT["optional-dependencies"])
GROUPS = [
    Requirement(line) for group in PYPROJECT["dependency-groups"].values() for line in group if isinstance(line, str)
]
"""What the project itself needs; the other entries include one group in another."""

KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
"""The headings of keepachangelog.com within a version."""


def test_the_version_is_in_one_place() -> None:
    """The package has it, what is installed says the same, and no other file repeats it but the CHANGELOG."""
    version = spotconn.__version__
    assert INSTALLED.version == version
    alone = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\d.])")
    read = [*PACKAGE.rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    assert [file.name for file in read if alone.search(file.read_text())] == ["__init__.py", "CHANGELOG.md"]


def test_the_changelog_keeps_its_form() -> None:
    """What is unreleased comes first, then each version with its day, the newest first: the one of the package."""
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *released = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    found = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in released]
    pairs = [(Version(match[1]), date.fromisoformat(match[2])) for match in found if match]
    assert len(pairs) == len(released)
    assert pairs == sorted(pairs, reverse=True)
    assert pairs[0][0] == Version(spotconn.__version__)
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= KINDS


def test_every_promised_python_is_tested() -> None:
    """`make dist` runs the tests on each Python of the classifiers, and on the oldest with the oldest packages."""
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    [runs] = re.findall(r"^DIST_RUNS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert runs.split() == [*(f"installed-{version}" for version in promised), f"lowest-{promised[0]}"]
    assert PROJECT["requires-python"] == f">={promised[0]}"


def test_the_types_are_shipped() -> None:
    """Type checkers read the annotations of the installed package."""
    assert (files("spotconn") / "py.typed").is_file()


def test_the_sql_is_shipped() -> None:
    """Every file of sql/ can be read from the installed package, and there is no other."""
    written = {file.name: file.read_text() for file in (ROOT / "sql").iterdir()}
    assert {name: read_sql(name) for name in get_args(SqlFile)} == written


def test_the_license_is_shipped() -> None:
    """The metadata names the license and brings its text."""
    assert INSTALLED.metadata["License-Expression"] == "MIT"
    [shipped] = [file for file in INSTALLED.files or () if file.name == "LICENSE"]
    assert shipped.read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("entry", INSTALLED.entry_points, ids=lambda entry: f"{entry.group} {entry.name}")
def test_every_entry_point_leads_somewhere(entry: EntryPoint) -> None:
    """What an installed command or plugin calls is there."""
    assert entry.load() is not None


def test_the_command_is_an_entry_point() -> None:
    """An installation brings the command spotconn."""
    assert [entry.name for entry in INSTALLED.entry_points.select(group="console_scripts")] == ["spotconn"]


@pytest.mark.long
@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_the_test_kit_names_it(missing: str) -> None:
    """Where only the library is installed, `spotconn.testing` says what to install, as the command and telemetry do."""
    code = f"import sys; sys.modules[{missing!r}] = None; import spotconn, spotconn.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert done.stderr.endswith('\nImportError: spotconn.testing needs an extra: pip install "spotconn[testing]"\n')


@pytest.mark.long
def test_without_the_extra_the_routes_name_it() -> None:
    """So does `spotconn.web`; an error of Starlette's own import stays what it is."""
    for missing, told in (
        ("starlette", 'ImportError: spotconn.web needs an extra: pip install "spotconn[web]"'),
        ("anyio", "ModuleNotFoundError: import of anyio halted; None in sys.modules"),
    ):
        code = f"import sys, spotconn; sys.modules[{missing!r}] = None; import spotconn.web"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
        assert done.stderr.splitlines()[-1] == told


def test_the_extras_are_those_for_users() -> None:
    """The metadata has the extras that the guide explains and the Makefile installs, none for the project."""
    [installed] = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    explained = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/how-to/install.md").read_text(), re.MULTILINE)
    assert sorted(EXTRAS) == sorted(installed.split(",")) == sorted(explained)
    assert set(INSTALLED.metadata.get_all("Provides-Extra") or ()) == EXTRAS


def test_no_group_names_the_package() -> None:
    """A tool that installs a group without the project would fetch a package of that name from the index."""
    assert "spotconn" not in {canonicalize_name(each.name) for each in GROUPS}


def _declared() -> set[str]:
    """The distributions that the package asks for, with all extras."""
    required = [Requirement(line) for line in INSTALLED.requires or ()]
    wanted = [
        each for each in required if not each.marker or any(each.marker.evaluate({"extra": e}) for e in {"", *EXTRAS})
    ]
    return {canonicalize_name(each.name) for each in wanted}


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Whatever is in a tree, without what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _run(node)


def _imported(folder: Path) -> Iterator[tuple[str, str]]:
    """Each package that a file below a folder imports from elsewhere, with the file's name."""
    for file in folder.rglob("*.py"):
        for node in _run(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            yield from ((name.partition(".")[0], file.name) for name in names)


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(PACKAGE, id="src"),
        pytest.param(ROOT / "tests", id="tests", marks=pytest.mark.long),
        pytest.param(ROOT / "examples", id="examples"),
    ],
)
def test_whatever_is_imported_is_declared(folder: Path) -> None:
    """No file imports what only came along with something else; the package itself does not live on a group."""
    groups: set[str] = set() if folder == PACKAGE else {canonicalize_name(each.name) for each in GROUPS}
    declared = _declared() | groups
    own = {"spotconn", "benchmarks", "_spotconn_pytest", "hatch_build"}
    own |= {path.stem for room in ("tests", "examples") for path in (ROOT / room).rglob("*")}
    foreign = [pair for pair in _imported(folder) if pair[0] not in own | sys.stdlib_module_names]
    providers = packages_distributions()
    assert foreign
    for name, file in foreign:
        assert declared & {canonicalize_name(each) for each in providers.get(name, [name])}, f"{file} imports {name}"


def test_every_other_room_is_barred_from_the_database() -> None:
    """A contract of import-linter forbids asyncpg by name, so a new room or public module has to be entered there."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    restricted = {
        name for each in contracts if "asyncpg" in each.get("forbidden_modules", ()) for name in each["source_modules"]
    }
    rooms = {module.name for module in iter_modules([str(PACKAGE)])} - {"__main__"}
    knowing = {"_database", "store", "admin", "_command", "testing"}
    assert restricted == {f"spotconn.{name}" for name in rooms - knowing}
