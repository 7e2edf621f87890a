"""The texts that an expression in the source of the library can give."""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import spotconn

SOURCE = Path(spotconn.__file__).parent
ANY = "…"
"""What stands for a part that varies."""
LISTED = {"FOREIGN"}
"""Tables of texts that have a page of their own: docs/reference/database-url.md, which has a test of its own, too."""
PASSED_ON = {"map_errors"}
"""Functions that return what their first argument does."""

_DEEPEST = 12

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """A module of the library.

    Args:
        path: of its file.

    Attributes:
        name: of the file in the package, with slashes.
        tree: its syntax tree.
        constants: expressions that are assigned at its top level, by name.
        functions: all functions and methods, by name; None where several have it.
        classes: the names of its classes.
        imports: module and name of what it imports from the library, by its name here.
        parents: each node but the tree, with the one that holds it.
    """

    def __init__(self, path: Path) -> None:
        self.name: str = path.relative_to(SOURCE).as_posix()
        self.tree: ast.Module = ast.parse(path.read_text(encoding="utf-8"))
        self.constants: dict[str, ast.expr] = dict(_assigned(self.tree.body))
        self.functions: dict[str, Function | None] = {}
        self.classes: set[str] = set()
        self.imports: dict[str, tuple[str, str]] = {}
        self.parents: dict[ast.AST, ast.AST] = {}
        for node in ast.walk(self.tree):
            self.parents |= dict.fromkeys(ast.iter_child_nodes(node), node)
            if isinstance(node, Function):
                seen = node.name in self.functions
                self.functions[node.name] = None if seen else node
            elif isinstance(node, ast.ClassDef):
                self.classes.add(node.name)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spotconn"):
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = (node.module or "", alias.name)

    def function_around(self, node: ast.AST) -> Function | None:
        """Return the innermost function that holds a node."""
        while (parent := self.parents.get(node)) is not None:
            if isinstance(parent, Function):
                return parent
            node = parent
        return None


@cache
def modules() -> dict[str, Module]:
    """Return the modules of the library by their full name."""
    found = {path: Module(path) for path in sorted(SOURCE.rglob("*.py"))}
    return {_full_name(path): module for path, module in found.items()}


class Reader:
    """Reads the texts that an expression can give. What it cannot know is `ANY`.

    Args:
        module: of the expression.
        function: that holds it.
        depth: of the functions and names that were followed until here.
    """

    def __init__(self, module: Module, function: Function | None, depth: int = 0) -> None:
        self._module = module
        self._function = function
        self._depth = depth

    def read(self, node: ast.expr) -> set[str]:
        """Return the texts; none for None and for what is no text."""
        match node:
            case ast.Constant(value=value):
                return {" ".join(f"a{value}z".split())[1:-1]} if isinstance(value, str) else set()
            case ast.JoinedStr(values=parts):
                texts = _joined(map(self._part, parts))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                texts = _joined([self.read(left), self.read(right)])
            case ast.Name(id=name):
                texts = self._named(name)
            case ast.Call():
                texts = self._called(node)
            case _ if choices := self._choices(node):
                texts = set[str]().union(*map(self.read, choices))
            case ast.Subscript(value=ast.Name(id=name)) if (table := self._table(name)) and name not in LISTED:
                texts = set[str]().union(*map(table[0].read, table[1].values))
            case _:
                texts = {ANY}
        return {re.sub(f"{ANY}+", ANY, text) for text in texts}

    @staticmethod
    def _choices(node: ast.expr) -> list[ast.expr]:
        """Return the expressions one of which an expression is."""
        match node:
            case ast.IfExp(body=body, orelse=other):
                return [body, other]
            case ast.BoolOp(values=values):
                return values
            case ast.Await(value=value) | ast.NamedExpr(value=value) | ast.GeneratorExp(elt=value):
                return [value]
            case _:
                return []

    def _part(self, node: ast.expr) -> set[str]:
        """Return the texts of a part of an f-string. One that may be missing counts as one that varies."""
        if not isinstance(node, ast.FormattedValue):
            return self.read(node)
        texts = {text if re.search(r"\w", text) else ANY for text in self.read(node.value)}
        if ANY in texts:  # a single word beside it is an example
            texts = {text for text in texts if text == ANY or " " in text}
        return texts or {ANY}

    def _deeper(self, module: Module, function: Function | None) -> "Reader":
        return Reader(module, function, self._depth + 1)

    def _named(self, name: str) -> set[str]:
        if self._depth > _DEEPEST:
            return {ANY}
        here = self._deeper(self._module, self._function)
        if self._function and name in names_of(self._function):
            assigned = [value for target, value in _assigned(ast.walk(self._function)) if target == name]
            values = [value for value in assigned if ast.unparse(value) != "''"]  # what it begins with
            loops = [here._looped(*loop) for loop in _loops(self._function, name)]
            bound = sum(_binds(node, name) for node in ast.walk(self._function))
            unknown = (
                {ANY} if name in parameters_of(self._function) or bound > len(assigned) + len(loops) else set[str]()
            )
            return unknown.union(*map(here.read, values), *loops)
        if name in self._module.constants:
            return self._deeper(self._module, None).read(self._module.constants[name])
        if name in self._module.imports:
            origin, original = self._module.imports[name]
            if origin in modules() and original in (constants := modules()[origin].constants):
                return self._deeper(modules()[origin], None).read(constants[original])
        return {ANY}

    def _table(self, name: str) -> "tuple[Reader, ast.Dict] | None":
        origin, original = self._module.imports.get(name, (None, name))
        module = self._module if origin is None else modules()[origin]
        table = module.constants.get(original)
        return (self._deeper(module, None), table) if isinstance(table, ast.Dict) else None

    def _looped(self, iterated: ast.expr, position: int) -> set[str]:
        """Return the texts at a position of what is iterated, if that is a constant of the module."""
        match iterated:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="items")) if table := self._table(name):
                keys = [key for key in table[1].keys if key is not None]
                return set[str]().union(*map(table[0].read, table[1].values if position else keys))
            case ast.Name(id=name) if isinstance(rows := self._module.constants.get(name), ast.Tuple):
                found = [row.elts[position] for row in rows.elts if isinstance(row, ast.Tuple)]
                return set[str]().union(*map(self.read, found))
            case _:
                return {ANY}

    def _called(self, call: ast.Call) -> set[str]:
        match call.func:
            case ast.Attribute(value=value, attr="rstrip"):
                return self.read(value)
            case ast.Attribute(value=value, attr="format"):
                return {re.sub(r"\{\w*\}", ANY, text) for text in self.read(value)}
            case ast.Name(id="next"):
                return set[str]().union(*map(self.read, call.args))
            case ast.Name(id=name) if name in PASSED_ON:
                return self.read(call.args[0])
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
                return self._returned(name)
            case _:
                return {ANY}

    def _returned(self, name: str) -> set[str]:
        """Return the texts that a function of the library returns."""
        origin, original = self._module.imports.get(name, (None, name))
        module = self._module if origin is None else modules().get(origin)
        if module is None or self._depth > _DEEPEST:
            return {ANY}
        if original in module.classes:
            return set()
        if (function := module.functions.get(original)) is None:
            return {ANY}
        returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
        return set[str]().union(*map(self._deeper(module, function).read, returned))


def _joined(parts: Iterable[set[str]]) -> set[str]:
    return {"".join(chosen) for chosen in itertools.product(*parts)}


def _assigned(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                yield name, value
            case _:
                pass


def _loops(function: ast.AST, name: str) -> Iterator[tuple[ast.expr, int]]:
    for node in ast.walk(function):
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Tuple):
            for position, target in enumerate(node.target.elts):
                if isinstance(target, ast.Name) and target.id == name:
                    yield node.iter, position


def _binds(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name


def names_of(function: Function) -> set[str]:
    stored = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored.union(parameters_of(function))


def parameters_of(function: Function) -> list[str]:
    return [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]


def _full_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
