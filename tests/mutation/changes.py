"""The small changes of a module's source: one operator, number, name or call each.

What no value can show is left alone: messages, assertions, the `strict` of a `zip`, annotations, defaults, decorators,
fields of classes.
"""

from __future__ import annotations

import ast
import copy
import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmin": "argmax", "argmax": "argmin"}
SKIPPED = (ast.Assert, ast.Raise, ast.JoinedStr, ast.AnnAssign, ast.Import, ast.ImportFrom, ast.arguments)


@dataclass
class Change:
    """One change: where, and what becomes of the line."""

    function: str
    """Qualified name inside the module, empty at its top level."""
    before: str
    after: str
    lines: range
    """Lines of the statement, of its header where it has a body."""
    parent: ast.AST
    field: str
    index: int | None
    old: ast.AST
    new: ast.AST

    @property
    def key(self) -> str:
        return key(self.function, self.before, self.after)

    def put(self, node: ast.AST) -> None:
        """Set the node at this place of the tree."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def key(function: str, before: str, after: str) -> str:
    """What says which change this is even after a local name is another one."""

    def shape(line: str) -> str:
        names = r"(?<![.\w])[a-z_]\w*\b(?!\()"
        return re.sub(names, lambda found: found[0] if keyword.iskeyword(found[0]) else "_", line)

    return f"{function}: {shape(before)} -> {shape(after)}"


def changes(tree: ast.Module) -> Iterator[Change]:
    """Every change of a module; `Change.put` applies it to `tree` and takes it back."""
    yield from _below(tree, tree, "")


def _below(node: ast.AST, statement: ast.AST, function: str) -> Iterator[Change]:
    inside = isinstance(node, ast.FunctionDef | ast.ClassDef)
    if inside:
        function = f"{function}.{node.name}".lstrip(".")
    for field, value in ast.iter_fields(node):
        if inside and field != "body":
            continue
        several = isinstance(value, list)
        for index, child in enumerate(value if several else [value]):
            if not isinstance(child, ast.AST) or isinstance(child, SKIPPED) or _for_types(child):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue
            if isinstance(node, ast.ClassDef) and not isinstance(child, ast.FunctionDef | ast.ClassDef):
                continue
            at = child if isinstance(child, ast.stmt) else statement
            for new in _replacements(child):
                ast.copy_location(new, child)
                found = Change(function, "", "", _header(at), node, field, index if several else None, child, new)
                holder = new if at is child else at
                lines = ast.unparse(at).splitlines()
                found.put(ast.fix_missing_locations(new))
                changed = ast.unparse(holder).splitlines()
                found.put(child)
                place = next((n for n, (a, b) in enumerate(zip(lines, changed, strict=False)) if a != b), None)
                if place is not None:
                    found.before, found.after = lines[place].strip(), changed[place].strip()
                    yield found
            yield from _below(child, at, function)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _header(statement: ast.AST) -> range:
    first, body = getattr(statement, "lineno", 1), getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else getattr(statement, "end_lineno", first)
    return range(first, max(first, last) + 1)


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    def other(**fields: object) -> ast.AST:
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.Compare():
            for n, operator in enumerate(node.ops):
                if type(operator) in COMPARISONS:
                    yield other(ops=[*node.ops[:n], COMPARISONS[type(operator)](), *node.ops[n + 1 :]])
        case ast.BinOp() if type(node.op) in OPERATORS:
            yield other(op=OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield other(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int())):
            pass  # counted from the end: the number is changed
        case ast.UnaryOp() if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
            yield copy.copy(node.operand)
        case ast.Constant() if isinstance(node.value, bool):
            yield other(value=not node.value)
        case ast.Constant() if isinstance(node.value, int | float):
            yield other(value=node.value * 2 if node.value else 1)
        case ast.Name() if node.id in NAMES and isinstance(node.ctx, ast.Load):
            yield other(id=NAMES[node.id])
        case ast.Attribute() if node.attr in NAMES:
            yield other(attr=NAMES[node.attr])
        case ast.Expr() if isinstance(node.value, ast.Call):
            yield ast.Pass()
