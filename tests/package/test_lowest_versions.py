"""The lowest versions that pyproject.toml allows, beside the table of published holes in CONTRIBUTING.md."""

import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
ADVISORY = re.compile(r"(CVE|PYSEC)-20\d\d-\d+|GHSA(-[0-9a-z]{4}){3}")


def _table() -> list[tuple[str, Version, str, str]]:
    """Package, version that mended it, advisories and source of each row."""
    _, _, section = (ROOT / "CONTRIBUTING.md").read_text().partition("## The lowest versions\n")
    section, _, _ = section.partition("\n## ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return [(package, Version(mended), advisories, source) for package, mended, advisories, _, source in rows[2:]]


def _lowest() -> Iterator[tuple[str, Version]]:
    """Each package that the project names, in every extra and group, with the lowest version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = chain(project["project"]["optional-dependencies"].values(), project["dependency-groups"].values())
    for line in [*project["build-system"]["requires"], *project["project"]["dependencies"], *chain(*lists)]:
        if not isinstance(line, str):
            continue  # one group in another
        requirement = Requirement(line)
        if requirement.name != "spotconn":
            [lowest] = [Version(each.version) for each in requirement.specifier if each.operator in {">=", "=="}]
            yield canonicalize_name(requirement.name), lowest


@pytest.mark.parametrize(("package", "mended"), [row[:2] for row in _table()], ids=str)
def test_no_lowest_version_has_a_published_hole(package: str, mended: Version) -> None:
    """Wherever a package of the table is asked for, it is asked for in a version without the hole."""
    asked = [lowest for name, lowest in _lowest() if name == package]
    assert asked, "no requirement: the row can go, or a floor is missing"
    assert min(asked) >= mended


def test_each_row_names_its_advisories_and_where_they_were_read() -> None:
    """A row has an advisory by the name that others know it by, and a source."""
    for package, _, advisories, source in _table():
        assert all(ADVISORY.fullmatch(each) for each in advisories.split(", ")), package
        assert source, package
