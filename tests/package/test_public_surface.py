"""The public surface: what is exported, and what importing costs."""

import inspect
import subprocess
import sys

import spotconn
import spotconn.testing
import spotconn.web
from spotconn import errors


def test_all_is_the_public_surface() -> None:
    """`__all__` names exactly what the package binds beside its modules."""
    for package in (spotconn, spotconn.testing, spotconn.web):
        found = {name: getattr(package, name) for name in dir(package)}
        bound = {name for name, value in found.items() if not name.startswith("_") and not inspect.ismodule(value)}
        assert bound == set(package.__all__)


def test_every_error_is_exported() -> None:
    """Every exception of the tree can be caught by a name of the package."""
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert tree <= set(spotconn.__all__)


def test_every_public_name_has_a_docstring() -> None:
    """Classes, functions and public methods say what they are for."""
    for name in spotconn.__all__:
        thing = getattr(spotconn, name)
        assert thing.__doc__, name
        for method, value in vars(thing).items() if inspect.isclass(thing) else ():
            if inspect.isfunction(value) and not method.startswith("_"):
                assert value.__doc__, f"{name}.{method}"


def test_import_is_silent_and_brings_no_extra() -> None:
    """Importing the package warns of nothing and imports none of the extras, nor what only operators use."""
    extras = {"starlette", "uvicorn", "spotconn.testing", "spotconn.web"}
    operators = {"spotconn.admin", "spotconn.importing", "spotconn.overview", "spotconn._database.schema"}
    code = f"import sys, spotconn; print(sorted({extras | operators} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_modules_of_operators_are_attributes() -> None:
    """As they were when the package imported them at once."""
    code = "import spotconn; print(*[getattr(spotconn, name).__name__ for name in ('overview', 'importing', 'admin')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("spotconn.overview spotconn.importing spotconn.admin\n", "")


_IN_THREADS = """
import threading, spotconn
names = ["ConnectionAdmin", "MigratedRow", "import_grant", "ConnectionStats"] * 4
found, ready = [], threading.Barrier(len(names))
def look(name):
    ready.wait()
    found.append((name, getattr(spotconn, name).__name__))
threads = [threading.Thread(target=look, args=(name,)) for name in names]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(sorted(found) == sorted((name, name) for name in names), "ConnectionAdmin" in dir(spotconn))
from spotconn import *
print(ConnectionAdmin is spotconn.admin.ConnectionAdmin, hasattr(spotconn, "ConnectionAdmins"))
"""


def test_what_operators_use_is_imported_when_it_is_asked_for() -> None:
    """By any of several threads at once, and by an asterisk; an unknown name is none."""
    done = subprocess.run([sys.executable, "-c", _IN_THREADS], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True True\nTrue False\n", "")
