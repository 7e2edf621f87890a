"""Looks through a wheel and an sdist for what is missing, left over or too large: `dist_check.py FOLDER`."""

import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]

BESIDE = re.compile(r"\]\((?!https?:|#)([^()\s]+)\)")
"""The target of a link to a file of the repository, which an index does not show."""

LARGEST = 500_000
"""Bytes that a wheel or an sdist may have."""

INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
ROOMS = ("examples", "sql", "src")
PAPERS = {
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "PKG-INFO",
    "README.md",
    "SECURITY.md",
    "hatch_build.py",
    "pyproject.toml",
}


def faults(root: Path, folder: Path) -> Iterator[str]:
    """Each fault of the distributions in a folder.

    Args:
        root: the repository that they were built from.
        folder: where they are, and nothing else.
    """
    version = project_version(root)
    wheel, sdist = folder / f"spotconn-{version}-py3-none-any.whl", folder / f"spotconn-{version}.tar.gz"
    yield from _differences("dist", {file.name for file in folder.iterdir()}, {wheel.name, sdist.name})
    if wheel.is_file():
        yield from _differences(wheel.name, _in_wheel(wheel), _due_in_wheel(root, version))
        yield from (f"{wheel.name}: the README leads to {path}, which no index has" for path in _beside(wheel))
    if sdist.is_file():
        yield from _differences(sdist.name, _in_sdist(sdist), _due_in_sdist(root))
    for file in folder.iterdir():
        if (size := file.stat().st_size) > LARGEST:
            yield f"{file.name}: {size} bytes, {LARGEST} are allowed"


def project_version(root: Path) -> str:
    """The version in the package itself."""
    [version] = re.findall(r'^__version__ = "(.+)"$', (root / "src/spotconn/__init__.py").read_text(), re.MULTILINE)
    return str(version)


def _differences(where: str, found: set[str], due: set[str]) -> Iterator[str]:
    yield from (f"{where}: {name} is missing" for name in sorted(due - found))
    yield from (f"{where}: {name} does not belong there" for name in sorted(found - due))


def _in_wheel(file: Path) -> set[str]:
    with ZipFile(file) as archive:
        return set(archive.namelist())


def _beside(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        metadata = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return [path for name in metadata for path in BESIDE.findall(archive.read(name).decode())]


def _in_sdist(file: Path) -> set[str]:
    with tarfile.open(file) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def _due_in_wheel(root: Path, version: str) -> set[str]:
    modules = {name.removeprefix("src/") for name in _files(root, "src")}
    sql = {f"spotconn/{name}" for name in _files(root, "sql")}
    return modules | sql | {f"spotconn-{version}.dist-info/{name}" for name in INFO}


def _due_in_sdist(root: Path) -> set[str]:
    return PAPERS.union(*(_files(root, room) for room in ROOMS))


def _files(root: Path, room: str) -> set[str]:
    found = [path for path in (root / room).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(root).as_posix() for path in found}


def main(folder: str) -> int:
    """Print the faults; 1 if there are any."""
    built = Path(folder).resolve()
    found = list(faults(ROOT, built))
    print(*found, sep="\n", end="\n" if found else "")
    sizes = ", ".join(f"{file.name} {file.stat().st_size} bytes" for file in sorted(built.iterdir()))
    print(f"{sizes}; {len(found)} faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
