"""The pages of the reference that are written by hand leave nothing out."""

import inspect
import re
from pathlib import Path

import asyncpg
import typer.main

from spotconn import ConnectionStore, TokenManager, _settings, cli

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_every_command_and_option_is_described() -> None:
    """The page of the command names each command, each argument and each option but --help."""
    page = (REFERENCE / "command.md").read_text()
    group = typer.main.get_group(cli.app)
    for name, command in group.commands.items():
        assert f"`spotconn {name}" in page, name
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else []:
                assert option in page, f"{name} {option}"


def test_every_setting_is_described() -> None:
    """The page of the settings lists each variable that is read and each keyword of `from_env`, with their defaults."""
    page = (REFERENCE / "settings.md").read_text()
    rows = re.findall(r"^\| (?:`(\w+)`)? ?\| (?:`(\w+)`)? ?\| (\d*) ?\| .+ \|$", page, re.MULTILINE)
    names = re.compile(r"\b(?:SPOTCONN|SPOTIFY|DATABASE)_[A-Z_]+\b")
    read = names.findall(Path(_settings.__file__).read_text())
    assert sorted(variable for variable, _, _ in rows if variable) == sorted(set(read))
    takers = [inspect.signature(function).parameters for function in (TokenManager, ConnectionStore.open)]
    defaults = {one.name: one.default for taker in takers for one in taker.values() if one.kind is one.KEYWORD_ONLY}
    defaults |= {"min_size": _settings.MIN_SIZE, "max_size": _settings.MAX_SIZE}
    assert {keyword for _, keyword, _ in rows if keyword} == set(defaults)
    numbers = {name: default for name, default in defaults.items() if isinstance(default, int | float)}
    assert {keyword: float(default) for _, keyword, default in rows if default} == numbers


async def test_every_column_is_described(admin: asyncpg.Connection) -> None:
    """The page of the database has the columns of the table with their types, in their order."""
    columns = await admin.fetch(
        "select attname::text, format_type(atttypid, atttypmod) from pg_attribute "
        "where attrelid = 'public.spotify_connections'::regclass and attnum > 0 and not attisdropped order by attnum"
    )
    described = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", (REFERENCE / "database.md").read_text(), re.MULTILINE)
    long_names = {"timestamptz": "timestamp with time zone"}
    assert [(name, long_names.get(kind, kind)) for name, kind in described] == [tuple(row) for row in columns]
