"""The look through a wheel and an sdist: what is missing, left over or too large is told."""

import os
import re
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from support import dist_check

TREE = {
    "src/spotconn/__init__.py": '__version__ = "1.2.3"\n',
    "src/spotconn/__pycache__/__init__.cpython-311.pyc": "",
    "src/spotconn/py.typed": "",
    "sql/schema.sql": "select 1",
    "docs/index.md": "# Title",
    "docs/images/profile.png": "",
    "tests/test_one.py": "",
}
WHEEL = "spotconn-1.2.3-py3-none-any.whl"
SDIST = "spotconn-1.2.3.tar.gz"
IN_WHEEL = {
    "spotconn/__init__.py",
    "spotconn/py.typed",
    "spotconn/sql/schema.sql",
    *(f"spotconn-1.2.3.dist-info/{name}" for name in dist_check.INFO),
}
IN_SDIST = {"src/spotconn/__init__.py", "src/spotconn/py.typed", "sql/schema.sql"} | dist_check.PAPERS

Check = Callable[..., list[str]]


def _pack_wheel(file: Path, names: set[str], data: bytes) -> None:
    with ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, data)


def _pack_sdist(file: Path, names: set[str], data: bytes) -> None:
    with tarfile.open(file, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"spotconn-1.2.3/{name}")
            member.size = len(data)
            archive.addfile(member, BytesIO(data))


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Packs a wheel and an sdist of these names, and tells their faults."""
    for name, text in TREE.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    dist = tmp_path / "dist"
    dist.mkdir()

    def packed(*, wheel: set[str] = IN_WHEEL, sdist: set[str] = IN_SDIST, data: bytes = b"") -> list[str]:
        _pack_wheel(dist / WHEEL, wheel, data)
        _pack_sdist(dist / SDIST, sdist, data)
        return list(dist_check.faults(tmp_path / "root", dist))

    return packed


def test_sound_distributions_have_no_faults(check: Check) -> None:
    """The package and its SQL in the wheel; the sources without tests, documentation and caches in the sdist."""
    assert check() == []


@pytest.mark.parametrize("name", ["spotconn/py.typed", "spotconn/sql/schema.sql", "spotconn-1.2.3.dist-info/RECORD"])
def test_what_a_wheel_lacks_is_reported(check: Check, name: str) -> None:
    """The types, the SQL and the metadata belong in it."""
    assert check(wheel=IN_WHEEL - {name}) == [f"{WHEEL}: {name} is missing"]


@pytest.mark.parametrize("name", ["tests/test_one.py", "spotconn/__pycache__/a.pyc", "spotconn/gone.py"])
def test_what_a_wheel_has_too_much_is_reported(check: Check, name: str) -> None:
    """No tests, no caches, no modules that the sources do not have."""
    assert check(wheel=IN_WHEEL | {name}) == [f"{WHEEL}: {name} does not belong there"]


@pytest.mark.parametrize("name", ["LICENSE", "PKG-INFO", "sql/schema.sql", "src/spotconn/py.typed"])
def test_what_an_sdist_lacks_is_reported(check: Check, name: str) -> None:
    """What the wheel is built from belongs in it, and the papers."""
    assert check(sdist=IN_SDIST - {name}) == [f"{SDIST}: {name} is missing"]


@pytest.mark.parametrize("name", ["docs/images/profile.png", "tests/test_one.py", ".env"])
def test_what_an_sdist_has_too_much_is_reported(check: Check, name: str) -> None:
    """No screenshots, no tests, nothing that lay about."""
    assert check(sdist=IN_SDIST | {name}) == [f"{SDIST}: {name} does not belong there"]


def test_what_is_too_large_is_reported(check: Check) -> None:
    """500,000 bytes are the limit of each."""
    found = check(data=os.urandom(45_000).hex().encode())
    assert [re.sub(r"\d{6} bytes", "N bytes", fault) for fault in sorted(found)] == [
        f"{WHEEL}: N bytes, 500000 are allowed",
        f"{SDIST}: N bytes, 500000 are allowed",
    ]


def test_a_link_to_a_file_is_reported(check: Check) -> None:
    """An index shows the README alone: a link may lead to another host or to a heading."""
    metadata = b"[a](docs/a.md#b) ![c](c.svg) [d](https://example.com/d.md) [e](#e)"
    assert check(data=metadata) == [
        f"{WHEEL}: the README leads to docs/a.md#b, which no index has",
        f"{WHEEL}: the README leads to c.svg, which no index has",
    ]


def test_a_distribution_of_another_version_is_reported(tmp_path: Path, check: Check) -> None:
    """What has not the version of the package is left over; what has it is missing."""
    check()
    (tmp_path / "dist" / SDIST).rename(tmp_path / "dist" / "spotconn-1.2.2.tar.gz")
    assert list(dist_check.faults(tmp_path / "root", tmp_path / "dist")) == [
        f"dist: {SDIST} is missing",
        "dist: spotconn-1.2.2.tar.gz does not belong there",
    ]
