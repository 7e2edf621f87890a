"""The import contracts of pyproject.toml, checked on a copy of the package in which imports can be planted."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import spotconn

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")


class Plant(NamedTuple):
    """An import that a contract forbids.

    Attributes:
        contract: the name of the contract.
        kind: what is wrong with the import.
        importer: the module that is given the import.
        imported: the module that it imports.
    """

    contract: str
    kind: str
    importer: str
    imported: str


def plants() -> Iterator[Plant]:
    """Yield imports for each contract, each of which breaks it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for contract in project["tool"]["importlinter"]["contracts"]:
        match contract["type"]:
            case "forbidden":
                yield _forbidden(contract)
            case "independence":
                yield _neighbour(contract["name"], contract["modules"])
            case "layers":
                yield from _layers(contract)
            case kind:
                raise ValueError(f"{contract['name']}: nothing is known of contracts of the type {kind}")


def copy_package(folder: Path) -> None:
    """Copy the package and its contracts into a folder."""
    shutil.copytree(Path(spotconn.__file__).parent, folder / "spotconn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def add_import(folder: Path, importer: str, imported: str) -> None:
    """Add an import at the end of a module of the copy."""
    path = folder.joinpath(*importer.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    with file.open("a") as module:
        module.write(f"\nimport {imported}\n")


def broken_contracts(folder: Path) -> set[str]:
    """Return the names of the contracts that the copy breaks."""
    # The width is that of the output; the copy goes before an installed package.
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "300"}
    done = subprocess.run(
        [str(LINT), "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert " kept, " in done.stdout, done.stdout + done.stderr
    return {line.removesuffix(" BROKEN") for line in done.stdout.splitlines() if line.endswith(" BROKEN")}


def _forbidden(contract: dict[str, Any]) -> Plant:
    return Plant(contract["name"], "forbidden", contract["source_modules"][0], contract["forbidden_modules"][0])


def _layers(contract: dict[str, Any]) -> Iterator[Plant]:
    name, container = contract["name"], contract.get("containers", [""])[0]
    layers = [[f"{container}.{module}".lstrip(".") for module in layer.split(" | ")] for layer in contract["layers"]]
    yield Plant(name, "upwards", layers[-1][0], layers[0][0])
    yield from [_neighbour(name, layer) for layer in layers if len(layer) > 1][:1]


def _neighbour(contract: str, modules: list[str]) -> Plant:
    return Plant(contract, "between neighbours", modules[0], modules[1])
