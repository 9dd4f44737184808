"""Small mistakes, written into a module one at a time, to see that a test fails for each.

    python tests/mutation/mutants.py run [MODULE...] [--workers N]     try them; results in tests/mutation/results/
    python tests/mutation/mutants.py report                            what survived and is not explained

A module is a key of `tests.yaml`, which names the tests that must notice. A mutant lives in a fork that loads the
changed source: nothing is written to the package. Survivors are killed by a new test, or explained in `explained.yaml`
by the line of source and the change. What no value can show is left alone: messages, assertions, annotations, defaults.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RESULTS = HERE / "results"
SECONDS = 240
"""Longest run of the tests of one mutant; a mutant that hangs is noticed."""
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


@dataclass(frozen=True)
class Mutant:
    """One change: where, and what became of the line."""

    line: int
    before: str
    after: str
    outcome: str = ""
    """``killed``, ``survived`` or ``hung``."""


class Mutator(ast.NodeTransformer):
    """Applies the change number `wanted`, or counts them."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted, self.seen = wanted, 0
        self.line = 0

    def _here(self, node: ast.AST) -> bool:
        self.seen += 1
        if self.seen - 1 == self.wanted:
            self.line = getattr(node, "lineno", self.line)
            return True
        return False

    def _skip(self, node: ast.AST) -> ast.AST:
        return node

    visit_Assert = visit_Raise = visit_JoinedStr = visit_AnnAssign = visit_Import = visit_ImportFrom = _skip  # noqa: N815

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.body = [self.visit(part) for part in node.body]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [
            self.visit(part) if isinstance(part, ast.FunctionDef | ast.ClassDef) else part for part in node.body
        ]
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        for n, operator in enumerate(node.ops):
            if type(operator) in COMPARISONS and self._here(node):
                node.ops[n] = COMPARISONS[type(operator)]()
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if type(node.op) in OPERATORS and self._here(node):
            node.op = OPERATORS[type(node.op)]()
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        if self._here(node):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not | ast.USub | ast.Invert) and self._here(node):
            return self.generic_visit(node.operand)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool) and self._here(node):
            return ast.copy_location(ast.Constant(not node.value), node)
        if isinstance(node.value, int | float) and not isinstance(node.value, bool) and self._here(node):
            return ast.copy_location(ast.Constant(node.value * 2 if node.value else 1), node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in NAMES and isinstance(node.ctx, ast.Load) and self._here(node):
            return ast.copy_location(ast.Name(NAMES[node.id], node.ctx), node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr in NAMES and self._here(node):
            node.attr = NAMES[node.attr]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Call) and self._here(node):
            return ast.copy_location(ast.Pass(), node)
        return node if isinstance(node.value, ast.Constant) else self.generic_visit(node)


def mutants(file: Path) -> Iterator[tuple[Mutant, ast.Module]]:
    """Every change of a file, with the changed module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    counter = Mutator()
    counter.visit(copy.deepcopy(tree))
    lines = ast.unparse(tree).splitlines()
    for number in range(counter.seen):
        mutator = Mutator(number)
        changed = ast.fix_missing_locations(mutator.visit(copy.deepcopy(tree)))
        new = ast.unparse(changed).splitlines()
        at = next((n for n, (a, b) in enumerate(zip(lines, new, strict=False)) if a != b), None)
        if at is not None:
            yield Mutant(mutator.line, lines[at].strip(), new[at].strip()), changed


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module its changed source."""

    def __init__(self, name: str, file: Path, tree: ast.Module) -> None:
        self.name, self.file, self.tree = name, file, tree

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.file, loader=self)

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.tree, str(self.file), "exec"), module.__dict__)


def outcome(name: str, file: Path, tree: ast.Module | None, tests: list[str]) -> str:
    """What the tests say of a changed module, in a fork; of the module as it is without a tree."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if tree is not None:
            sys.meta_path.insert(0, Changed(name, file, tree))
        import pytest

        arguments = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
        for file_ in tests:  # one after the other: most mutants end with the first
            if code := int(pytest.main([*arguments, file_])):
                os._exit(code)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "hung" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
    code = os.WEXITSTATUS(status)
    return {0: "survived", 1: "killed"}.get(code, "killed")


def run(name: str, tests: list[str], workers: int) -> None:
    """Try every mutant of a module that is not tried yet; the file of results grows along the way."""
    file = ROOT / (name.replace(".", "/") + ".py")
    target = RESULTS / f"{name}.jsonl"
    done = {(m["line"], m["before"], m["after"]) for m in read(target)}
    if outcome(name, file, None, tests) != "survived":
        raise SystemExit(f"{name}: its tests fail without any change")
    todo = [(m, tree) for m, tree in mutants(file) if (m.line, m.before, m.after) not in done]

    def one(pair: tuple[Mutant, ast.Module]) -> None:
        mutant, tree = pair
        result = asdict(mutant) | {"outcome": outcome(name, file, tree, tests)}
        with target.open("a", encoding="utf-8") as out:
            out.write(json.dumps(result) + "\n")

    start = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, todo))
    found = read(target)
    survived = [m for m in found if m["outcome"] == "survived"]
    print(f"{name}: {len(found)} mutants, {len(survived)} survived, {time.monotonic() - start:.0f} s", flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def report() -> int:
    """Print survivors without an explanation; returns how many there are."""
    explained = yaml.safe_load((HERE / "explained.yaml").read_text(encoding="utf-8")) or {}
    open_ = 0
    for file in sorted(RESULTS.glob("*.jsonl")):
        known = {(e["before"], e["after"]) for e in explained.get(file.stem, [])}
        for m in read(file):
            if m["outcome"] == "survived" and (m["before"], m["after"]) not in known:
                open_ += 1
                print(f"{file.stem}:{m['line']}\n    - {m['before']}\n    + {m['after']}")
    print(f"{open_} survivors are not explained")
    return open_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "report"])
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    if args.verb == "report":
        raise SystemExit(bool(report()))
    import diffusers
    import peft
    import torch
    import transformers  # noqa: F401  # loaded once, before the forks

    torch.set_num_threads(1)
    assert diffusers and peft
    RESULTS.mkdir(exist_ok=True)
    table = yaml.safe_load((HERE / "tests.yaml").read_text(encoding="utf-8"))
    for name in args.modules or table:
        run(name, table[name], args.workers)


if __name__ == "__main__":
    main()
