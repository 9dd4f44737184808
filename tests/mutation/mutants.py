"""Small mistakes, written into a module one at a time, to see that a test fails for each.

    python tests/mutation/mutants.py run [MODULE...] [--again]     try them; results in tests/mutation/results/
    python tests/mutation/mutants.py report [MODULE...] [--write]  what survived, and the numbers of `summary.md`

A module is a key of `tests.yaml`, which names the tests that must notice. These are collected once, and run
once without a change to learn which lines every test reaches and how long it takes. A mutant lives in a fork: the code
of its function is exchanged in place, and the tests that reach its statement run, the quickest first, until one fails.
A change outside of functions needs a fork that has not imported the package yet. Nothing is written to the package.

A survivor is killed by a new test, or explained in `explained.yaml`: by function and by the line before and after the
change. Names of local variables do not count there, so that an explanation outlives a renaming; `report` lists those
that explain nothing any more. `run` skips what was tried, `run --again` tries the survivors that nothing explains anew.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import importlib
import importlib.abc
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
import yaml
from changes import Change, changes, key

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
QUICK = 0.5
"""Seconds; tests below run before all others."""
OPTIONS = ["-q", "-s", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
KILLED, SURVIVED, HUNG, RELOAD = "killed", "survived", "hung", "reload"
BROKEN = 70
"""Exit code of a fork that could not run the tests."""


def file_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def file_part(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def results_of(module: str) -> dict[str, dict[str, Any]]:
    """The last result of every change."""
    file = RESULTS / f"{module}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {one["id"]: one for one in map(json.loads, lines)}


def record(module: str, identity: str, change: Change, outcome: str, tests: int, by: str) -> None:
    where = {"line": change.lines.start, "function": change.function}
    text = {"before": change.before, "after": change.after}
    result = {"id": identity, **where, **text, "outcome": outcome, "tests": tests, "by": by}
    with (RESULTS / f"{module}.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(result) + "\n")


def identified(tree: ast.Module) -> Iterator[tuple[str, Change]]:
    """The changes of a module, each with its identity."""
    seen = Counter[str]()
    for change in changes(tree):
        seen[change.key] += 1
        yield f"{change.key} #{seen[change.key]}", change


def forked(work: Callable[[], int], seconds: float) -> int | None:
    """The exit code of `work` in a fork; None where it took longer."""
    scratch = tempfile.mkdtemp(prefix="mutant")
    child = os.fork()
    if child == 0:
        os.setsid()
        os.environ["PYTEST_DEBUG_TEMPROOT"] = scratch
        signal.alarm(max(1, int(seconds)))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = BROKEN
        try:
            code = work()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started
    shutil.rmtree(scratch, ignore_errors=True)
    if os.WIFSIGNALED(status):
        return None if os.WTERMSIG(status) == signal.SIGALRM else 1
    return os.WEXITSTATUS(status)


class Session:
    """A pytest plugin: it collects as usual, and runs the tests for one mutant after the other."""

    def __init__(self, modules: dict[str, list[str]], again: bool) -> None:
        self.modules, self.again = modules, again
        self.files = {str(file_of(module)) for module in modules}
        self.trees = {name: ast.parse(file_of(name).read_text(encoding="utf-8")) for name in modules}
        """As they are imported, whatever becomes of the files."""
        self.lines: dict[str, set[tuple[str, int]]] = defaultdict(set)
        """What a test reaches, and by the name of a file what its fixtures do, which several tests may share."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.items: dict[str, list[pytest.Item]] = defaultdict(list)
        self.known: set[str] = set()
        self.failed: set[str] = set()
        self.on_failure: Callable[[str], None] = self.failed.add

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.when == "setup":
            self.lines[report.nodeid.partition("::")[0]] |= self.lines[report.nodeid]
        if report.failed:
            self.on_failure(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        for name in {test for tests in self.modules.values() for test in tests}:
            self.items[name] = [item for item in session.items if item.nodeid.partition("[")[0].startswith(name)]
        for module, tests in self.modules.items():
            self.trial(module, tests)
        return True

    def trial(self, module: str, tests: list[str]) -> None:
        importlib.import_module(module)
        tree = self.trees[module]
        known, reasons = results_of(module), explained().get(module, {})

        def is_open(name: str, change: Change) -> bool:
            survived = name in known and known[name]["outcome"] == SURVIVED
            return name not in known or (self.again and survived and change.key not in reasons)

        todo = [(name, change) for name, change in identified(tree) if is_open(name, change)]
        if not todo:
            return
        start = time.monotonic()
        for test in tests:
            if test not in self.known:
                self.trace(test)
        items = [item for test in tests for item in self.items[test] if item.nodeid not in self.failed]
        last: dict[str, pytest.Item] = {}
        tally = Counter[str]()
        for identity, change in todo:
            outcome, reach, by = self.one(module, tree, change, items, last.get(change.function))
            tally[outcome] += 1
            if by is not None:
                last[change.function] = by
            record(module, identity, change, outcome, reach, by.nodeid if by else "")
        print(f"{module}: {dict(tally)}, {time.monotonic() - start:.0f} s", flush=True)

    def trace(self, test: str) -> None:
        """Run a file of tests unchanged and note which lines every test reaches, and its seconds."""
        now = ""
        target = tempfile.NamedTemporaryFile(suffix=".json")

        def line(frame: Any, event: str, argument: Any) -> Any:
            self.lines[now].add((frame.f_code.co_filename, frame.f_lineno))
            return line

        def call(frame: Any, event: str, argument: Any) -> Any:
            return line(frame, event, argument) if frame.f_code.co_filename in self.files else None

        def work() -> int:
            nonlocal now
            threading.settrace(call)
            sys.settrace(call)
            items = self.items[test]
            for item, following in zip(items, [*items[1:], None], strict=True):
                now = item.nodeid
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            sys.settrace(None)
            found = {"reached": {name: list(lines) for name, lines in self.lines.items()}}
            found |= {"seconds": self.seconds, "failed": list(self.failed)}
            Path(target.name).write_text(json.dumps(found), encoding="utf-8")
            return 0

        if forked(work, 900) != 0:
            raise SystemExit(f"{test} does not run")
        found = json.loads(Path(target.name).read_text(encoding="utf-8"))
        for name, lines in found["reached"].items():
            self.lines[name] |= {(file, number) for file, number in lines}
        self.seconds.update(found["seconds"])
        self.failed |= set(found["failed"])
        self.known.add(test)
        total = sum(self.seconds[item.nodeid] for item in self.items[test])
        broken = [name for name in found["failed"] if name.startswith(test)]
        print(f"  {test}: {len(self.items[test])} tests, {total:.1f} s", *broken, flush=True)

    def one(
        self, name: str, tree: ast.Module, change: Change, items: list[pytest.Item], first: pytest.Item | None
    ) -> tuple[str, int, pytest.Item | None]:
        """Outcome of a change, the number of tests that reach it, and the test that failed."""
        if not change.function:
            return RELOAD, 0, None
        file = str(file_of(name))
        places = {(file, number) for number in change.lines}
        reach = [
            item for item in items if any(places & self.lines[n] for n in (item.nodeid, item.nodeid.split("::")[0]))
        ]
        if not reach:
            return SURVIVED, 0, None
        files = Counter[str]()
        for item in reach:
            files[file_part(item)] += self.seconds[item.nodeid]  # its tests stay together: they may share fixtures
        keys = {item: (self.seconds[item.nodeid] > QUICK, files[file_part(item)], file_part(item)) for item in reach}
        order = sorted(reach, key=lambda item: (item is not first, *keys[item]))
        module = compile(tree, file, "exec")
        change.put(change.new)
        changed = compile(tree, file, "exec")
        change.put(change.old)
        failing = tempfile.NamedTemporaryFile()

        def stop(nodeid: str) -> None:
            Path(failing.name).write_text(nodeid, encoding="utf-8")
            os._exit(1)

        def work() -> int:
            self.on_failure = stop
            try:
                exchange(file, module, changed)
            except ValueError:  # other free variables, or a function less
                return 3
            for item, following in zip(order, [*order[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            return 0

        exit_code = forked(work, 20 + 8 * sum(self.seconds[item.nodeid] for item in order))
        failed = Path(failing.name).read_text(encoding="utf-8")
        by = next((item for item in order if item.nodeid == failed), None)
        assert exit_code != BROKEN, change.key
        return {None: HUNG, 0: SURVIVED, 3: RELOAD}.get(exit_code, KILLED), len(reach), by


def exchange(file: str, module: CodeType, changed: CodeType) -> None:
    """Give every function of a file the code that it has in the changed module; `ValueError` where that cannot be."""

    def codes(code: CodeType) -> Iterator[CodeType]:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield constant
                yield from codes(constant)

    def place(code: CodeType) -> tuple[Any, ...]:  # codes that have run are equal to no fresh ones
        return code.co_qualname, code.co_firstlineno, code.co_linetable

    new = {place(old): code for old, code in zip(codes(module), codes(changed), strict=True)}
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename == file:
            function.__code__ = new[place(function.__code__)]


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module its changed source."""

    def __init__(self, module: str, code: CodeType) -> None:
        self.module, self.code = module, code

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.module:
            return None
        return importlib.util.spec_from_file_location(fullname, file_of(fullname), loader=self)

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(self.code, module.__dict__)


def reload(module: str, tests: list[str]) -> None:
    """Try the changes that need a fresh import, in forks that have none of the package's modules."""
    known = results_of(module)
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    todo = [(name, one) for name, one in identified(tree) if known.get(name, {}).get("outcome") == RELOAD]
    if todo and forked(lambda: int(pytest.main([*OPTIONS, "-x", *tests])), 900) != 0:
        raise SystemExit(f"{module}: its tests fail without any change")
    for identity, change in todo:
        change.put(change.new)
        code = compile(tree, str(file_of(module)), "exec")
        change.put(change.old)

        def work(code: CodeType = code) -> int:
            sys.meta_path.insert(0, Changed(module, code))
            return int(pytest.main([*OPTIONS, "-x", *tests]))

        exit_code = forked(work, 600)
        assert exit_code != BROKEN, change.key
        outcome = {None: HUNG, 0: SURVIVED}.get(exit_code, KILLED)
        record(module, identity, change, outcome, len(tests), "")


def run(table: dict[str, list[str]], again: bool) -> None:
    import diffusers  # noqa: F401  # loaded once, before the forks
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    assert not [name for name in sys.modules if name.startswith("vidalign")]
    session = os.fork()
    if session == 0:
        files = sorted({test for tests in table.values() for test in tests})
        code = int(pytest.main([*OPTIONS, *files], plugins=[Session(table, again)]))
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(session, 0)[1])
    for module, tests in table.items():
        reload(module, tests)
    if code:
        raise SystemExit(code)


def explained() -> dict[str, dict[str, str]]:
    """Why a change cannot be noticed, by module and key."""
    found = yaml.safe_load((HERE / "explained.yaml").read_text(encoding="utf-8")) or {}
    return {
        module: {key(one["in"], one["before"], one["after"]): one["why"] for one in entries}
        for module, entries in found.items()
    }


def report(table: dict[str, list[str]], write: bool) -> int:
    """Print survivors without an explanation and the numbers of every module; returns how many are open."""
    reasons_of, rows, total = explained(), [], 0
    for module in table:
        reasons = reasons_of.get(module, {})
        tally, known = Counter[str](), results_of(module)
        unused = set(reasons) if known else set()
        for identity, change in identified(ast.parse(file_of(module).read_text(encoding="utf-8"))):
            outcome = known[identity]["outcome"] if identity in known else "untried"
            if outcome == SURVIVED and change.key in reasons:
                outcome = "explained"
                unused.discard(change.key)
            tally[outcome] += 1
            if outcome == SURVIVED:
                print(f"# {module}:{change.lines.start}, {known[identity]['tests']} tests reach it")
                print(f"  - in: {change.function}\n    before: {change.before}\n    after: {change.after}\n    why:")
        for name in sorted(unused):
            print(f"# {module}: explains nothing: {name}")
        total += tally[SURVIVED] + tally["untried"] + tally[RELOAD]
        rows.append((module, tally))
    lines = ["| module | mutants | killed | hung | explained | open | not tried |", "|---|---|---|---|---|---|---|"]
    whole = sum((tally for _, tally in rows), Counter[str]())
    for module, tally in [*rows, ("all", whole)]:
        columns = [tally[name] for name in (KILLED, HUNG, "explained", SURVIVED, "untried")]
        lines.append(f"| {module.removeprefix('vidalign.')} | {sum(columns)} | " + " | ".join(map(str, columns)) + " |")
    print("\n".join(lines))
    if write:
        head = ["# Mutants", "", f"`make mutants`, commit {commit()}, {platform.platform()}, Python "]
        head[-1] += f"{platform.python_version()}, {os.cpu_count()} cores. `mutants.py` says what a mutant is."
        (HERE / "summary.md").write_text("\n".join([*head, "", *lines, ""]), encoding="utf-8")
    return total


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout[:-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "report"])
    parser.add_argument("modules", nargs="*", help="as in tests.yaml, or what their names begin with; all without any")
    parser.add_argument("--again", action="store_true", help="try the survivors anew")
    parser.add_argument("--write", action="store_true", help="write summary.md")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    table = yaml.safe_load((HERE / "tests.yaml").read_text(encoding="utf-8"))
    begin = tuple(args.modules)
    table = {name: tests for name, tests in table.items() if not begin or name.startswith(begin)}
    if args.verb == "report":
        raise SystemExit(bool(report(table, args.write)))
    run(table, args.again)


if __name__ == "__main__":
    main()
