"""The import contracts of pyproject.toml: the package holds them, and each fails where it is broken."""

from pathlib import Path

import pytest

from support.import_contracts import Plant, add_import, broken_contracts, copy_package, plants


def test_a_clean_copy_breaks_no_contract(tmp_path: Path) -> None:
    """The copy in which imports are planted passes without them."""
    copy_package(tmp_path)
    assert broken_contracts(tmp_path) == set()


@pytest.mark.long
@pytest.mark.parametrize("plant", [*plants()], ids=lambda plant: f"{plant.contract[:32]}, {plant.kind}")
def test_a_forbidden_import_breaks_its_contract(plant: Plant, tmp_path: Path) -> None:
    """An upward import, one between neighbours, or one of a forbidden package is found, by its own contract."""
    copy_package(tmp_path)
    add_import(tmp_path, plant.importer, plant.imported)
    assert plant.contract in broken_contracts(tmp_path)
