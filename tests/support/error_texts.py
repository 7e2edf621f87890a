"""The texts of all errors that the library can raise, read from its source."""

import ast
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spotconn import errors
from support.source_texts import ANY, Module, Reader, modules, names_of, parameters_of

BUILTIN = ("ValueError", "TypeError", "RuntimeError", "AttributeError", "ImportError", "FileNotFoundError")
"""Classes of Python's own that a caller may see."""
SEEN_CALLS = {
    "_database/sqlstates.py: ConfigurationError": "the table of SQLSTATEs: sqlstates.md has its texts",
    "_database/sqlstates.py: ConnectFailed": "as above",
    "_database/sqlstates.py: DatabaseUnavailable": "as above",
    "_database/sqlstates.py: RowSecurityError": "as above",
    "_database/sqlstates.py: SchemaMismatch": "as above",
    "_database/sqlstates.py: StatementRefused": "as above",
    "blocking/_loop_thread.py: SingleFlight[str, R]": "no error, but a generic class",
    "connect.py: SingleFlight[tuple[Callback, Claim, bool], Completed]": "no error, but a generic class",
    "_tokens/source.py: SingleFlight[tuple[UUID, str], Replacement]": "no error, but a generic class",
}
"""What `unclear_calls` finds and is understood, each with the reason."""
SEEN_TEXTS = {
    ("ConnectFailed", "_spotify/answers.py"): "the text of Spotify's 403, which the page has in words",
    (
        "SpotifyUnavailable",
        "_tokens/background.py",
    ): "the name of an unexpected class; it holds back a refresh, and is not raised",
}
"""Where the source does not show the text, each with the reason."""

_LIBRARY = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
_SECOND_IS_TEXT = {"ConnectFailed", "StatementRefused"}
_LOOK_ONLY = {"isinstance", "issubclass", "suppress", "is_a"}
_WITH_OWN_TEXT = {"MissingScope", "OtherApp", "ReauthorizationRequired"}


class Construction(NamedTuple):
    """One place where an error is made.

    Attributes:
        kind: the name of its class.
        text: with `ANY` for what varies; `ANY` alone where the source does not show it.
        file: in the package.
        line: in that file.
    """

    kind: str
    text: str
    file: str
    line: int


def constructions() -> list[Construction]:
    """Return all places where the library makes an error that a caller may see."""
    return [found for module in modules().values() for found in _of_module(module)]


def unclear_calls() -> list[str]:
    """Return the places that seem to make an error whose class the source does not show."""
    return [place for module in modules().values() for place in _unclear(module)]


def _of_module(module: Module) -> Iterator[Construction]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Raise) and node.exc is not None and (kind := _class_name(module, node.exc)):
            yield Construction(kind, ANY, module.name, node.lineno)
        if not isinstance(node, ast.Call) or (kind := _class_name(module, node.func)) is None:
            continue
        for text in _own_text(kind) if kind in _WITH_OWN_TEXT else _texts_of(module, node, kind):
            yield Construction(kind, text, module.name, node.lineno)


def _texts_of(module: Module, call: ast.Call, kind: str) -> Iterable[str]:
    position = 1 if kind in _SECOND_IS_TEXT else 0
    if len(call.args) <= position:
        return {ANY}
    argument, function = call.args[position], module.function_around(call)
    if isinstance(argument, ast.Name) and function and argument.id in (names := parameters_of(function)):
        # A check that is given the text: those that call it have it.
        users = [other for other in modules().values() if other is module or function.name in other.imports]
        callers = [(user, one) for user in users for one in ast.walk(user.tree) if _calls(one, function.name)]
        given = [(user, one.args[names.index(argument.id)]) for user, one in callers if isinstance(one, ast.Call)]
        texts = {text for user, one in given for text in Reader(user, user.function_around(one)).read(one)}
        return {text or ANY for text in texts} or {ANY}
    return {text or ANY for text in Reader(module, function).read(argument)} or {ANY}


def _own_text(kind: str) -> set[str]:
    """Return the text of a class that makes it itself."""
    module = modules()["spotconn.errors"]
    (body,) = (node for node in module.tree.body if isinstance(node, ast.ClassDef) and node.name == kind)
    (text,) = (node for node in body.body if isinstance(node, ast.FunctionDef) and node.name == "__str__")
    (result,) = (node.value for node in ast.walk(text) if isinstance(node, ast.Return) and node.value)
    return Reader(module, module.function_around(result)).read(result)


def _unclear(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and _class_name(module, node) and _is_handed_on(module, node):
            yield f"{module.name}: {node.id}"
        if isinstance(node, ast.ClassDef) and module.name != "errors.py":
            yield from [f"{module.name}: {node.name}" for base in node.bases if _class_name(module, base)]
        if not isinstance(node, ast.Call) or not any(map(_is_text, node.args)):
            continue
        function, called = module.function_around(node), node.func
        local = isinstance(called, ast.Name) and function is not None and called.id in names_of(function)
        qualified = isinstance(called, ast.Attribute) and called.attr in _LIBRARY
        if local or qualified or isinstance(called, ast.Call | ast.Subscript):
            yield f"{module.name}: {ast.unparse(called)}"


def _is_handed_on(module: Module, node: ast.Name) -> bool:
    """Return whether a class is given to what may call it, or gets another name."""
    parent = module.parents[node]
    if isinstance(parent, ast.Call) and parent.func is not node:
        return ast.unparse(parent.func).rpartition(".")[2] not in _LOOK_ONLY
    return isinstance(parent, ast.Assign | ast.AnnAssign | ast.IfExp | ast.Dict | ast.Return) and node is not getattr(
        parent, "annotation", None
    )


def _class_name(module: Module, called: ast.expr) -> str | None:
    """Return the name of the error class that is called; None for anything else."""
    if not isinstance(called, ast.Name):
        return None
    origin, name = module.imports.get(called.id, ("", called.id))
    if origin in {"spotconn", "spotconn.errors"} or (module.name == "errors.py" and name in module.classes):
        return name if name in _LIBRARY else None
    return name if not origin and name in BUILTIN and called.id not in module.classes else None


def _calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
