"""A project of Alembic or Django with a migration of the documentation: `migration_tools.py TOOL URL FILE…`."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

SETTINGS = """
INSTALLED_APPS += ["music"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", "NAME": {name!r}, "USER": {user!r},
    "PASSWORD": {password!r}, "HOST": {host!r}, "PORT": {port!r}}}}}
"""


ALEMBIC = "from alembic.config import main\nfor words in {commands}: main(words)"
DJANGO = """
from django.core.management import execute_from_command_line
for words in {commands}: execute_from_command_line(["django-admin", *words])
"""


METADATA = """
from sqlalchemy import BigInteger, Column, MetaData, Table
target_metadata = MetaData()
Table("users", target_metadata, Column("id", BigInteger, primary_key=True))
"""


def _run(program: str, *commands: list[str], **settings: str) -> None:
    """Run commands of a tool in one process, from the folder of the project."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), "."]))
    command = [sys.executable, "-c", program.format(commands=list(commands))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path} | settings)


def _name_models(names: str) -> None:
    """Let Alembic compare the models with all schemas, but for the names that the file leaves out."""
    env = Path("history/env.py")
    text, both = env.read_text(encoding="utf-8"), "target_metadata=target_metadata"
    assert (text.count("target_metadata = None"), text.count(both)) == (1, 2)
    text = text.replace("target_metadata = None", METADATA + Path(names).read_text(encoding="utf-8"))
    text = text.replace(both, f"{both}, include_name=include_name, include_schemas=True")
    env.write_text(text, encoding="utf-8")


def with_alembic(url: str, migration: str, names: str) -> None:
    _run(ALEMBIC, ["init", "-t", "async", "history"])
    config = Path("alembic.ini")
    text = config.read_text(encoding="utf-8")
    default = "sqlalchemy.url = driver://user:pass@localhost/dbname"
    assert default in text
    driver = url.replace("postgresql://", "postgresql+asyncpg://").replace("%", "%%")
    config.write_text(text.replace(default, f"sqlalchemy.url = {driver}"), encoding="utf-8")
    shutil.copy(migration, "history/versions")
    _name_models(names)
    _run(ALEMBIC, ["upgrade", "head"], ["stamp", "base"], ["upgrade", "head"], ["check"])


def with_django(url: str, migration: str) -> None:
    _run(DJANGO, ["startproject", "service", "."], ["startapp", "music"])
    parts = urlsplit(url)
    with Path("service/settings.py").open("a", encoding="utf-8") as settings:
        settings.write(
            SETTINGS.format(
                name=parts.path[1:], user=parts.username, password=parts.password, host=parts.hostname, port=parts.port
            )
        )
    shutil.copy(migration, "music/migrations")
    migrate = ["migrate", "-v", "0"]
    _run(DJANGO, migrate, [*migrate, "--fake", "music", "zero"], migrate, DJANGO_SETTINGS_MODULE="service.settings")


async def main(tool: str, url: str, *files: str) -> None:
    """Apply it twice to a database of its own, which is dropped at the end."""
    name = f"scratch_{uuid4().hex}"
    maintenance = await asyncpg.connect(url)
    await maintenance.execute(f"create database {name} template template0")
    try:
        own = urlsplit(url)._replace(path=f"/{name}").geturl()
        connection = await asyncpg.connect(own)
        insert = "insert into auth_user (password, is_superuser, username, first_name, last_name, email, is_staff, "
        insert += "is_active, date_joined) values ('', false, 'a', '', '', '', false, true, now())"
        if tool == "alembic":
            insert = "insert into users values (1)"
            await connection.execute("create table users (id bigint primary key)")
        upgrades: dict[str, Callable[..., object]] = {"alembic": with_alembic, "django": with_django}
        await asyncio.to_thread(upgrades[tool], own, *files)
        await connection.execute(insert)
        assert await connection.fetchval("select array_agg(spotconn.integer_id(id)) from auth.users") == [1]
        await connection.close()
    finally:
        await maintenance.execute(f"drop database {name} with (force)")
        await maintenance.close()
    print("applied twice, and a new user is in auth.users")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
