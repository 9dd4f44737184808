"""Golden trajectories: what every shipped recipe does in three steps on a tiny budget, recorded and compared.

    python tests/golden/trajectories.py record [RECIPE...]        write tests/golden/trajectories/
    python tests/golden/trajectories.py check [RECIPE...]         compare with what is written there
    python tests/golden/trajectories.py compare REV [RECIPE...]   compare with another commit, bit for bit

One file holds the runs that must agree: `plain/` is fp64 on one process and on two, `zero2/` is ZeRO-2 in fp32 on two.
A commit that changes a number on purpose records anew, and says in its message which number and why.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from runner import precision

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = HERE / "trajectories"
DIGITS = 10
EXACT = (1e-6, 1e-12)
"""Largest relative and absolute difference from a committed value, of fp64 on the recorded number of processes."""
ROUNDED = (1e-4, 1e-6)
"""The same of fp32, and of other processes: rewards and the weights of a group are fp32 on the way."""
PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}
"""Kernels of every x86 processor with AVX2; oneDNN is off, see runner.py. In fp64 others agree within `EXACT`."""
PINNED_FP32 = PINNED | {"MKL_CBWR": "COMPATIBLE"}
"""Those that compute the same bits on all of them, for judges, codecs and students in fp32. With others clips that
score almost alike, a routing between two distributions that are almost equal, or a step of Adam along a gradient of
1e-9 make a percent of the last bits. Matrix products take five times as long."""
PROCESSES = {"plain": (1, 2), "zero2": (2,)}
"""Numbers of processes whose runs share one file; the first one is recorded."""
LONGEST = 1800
"""Seconds after which a launch is stopped."""


@dataclass(frozen=True)
class Launch:
    """Recipes of one family that run one after the other in the same processes."""

    engine: str
    processes: int
    recipes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.engine} x {self.processes}"

    @property
    def pinned(self) -> dict[str, str]:
        """Variables that choose kernels; the judges and codecs of twins compute in fp32 on every engine."""
        exact = all(precision(r, self.engine) == "fp64" and not is_twin(r) for r in self.recipes)
        return PINNED if exact else PINNED_FP32


# --- which ---


def shipped(root: Path = ROOT) -> list[str]:
    """Every runnable recipe of a tree, for one that has a CPU twin the twin alone; none whose weights are not built."""
    folder = root / "recipes"
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.yaml") if path.name != "base.yaml")
    alone = [path for path in files if not (folder / "twins" / path).is_file() and has_weights(folder / path, root)]
    return [path.with_suffix("").as_posix() for path in alone]


def is_twin(recipe: str) -> bool:
    return recipe.startswith("twins/")


def has_weights(recipe: Path, root: Path) -> bool:
    """Whether a tree has the shipped weights of the embedded worlds that a recipe begins with."""
    names = re.findall(r"path: ((?:world|events|rules|signs|tokens|pictures)/\w+)", recipe.read_text(encoding="utf-8"))
    return all((root / "vidalign" / "weights" / f"{name}.safetensors").is_file() for name in names)


def may(recipe: str, engine: str, root: Path = ROOT) -> bool:
    """Whether a recipe runs on an engine: Muon needs whole matrices, which ZeRO divides."""
    return engine == "plain" or not uses_muon(recipe, root)


def uses_muon(recipe: str, root: Path = ROOT) -> bool:
    return "optimizer: muon" in "".join(layers(root / "recipes" / f"{recipe}.yaml", root))


def layers(file: Path, root: Path) -> Iterator[str]:
    """The text of a recipe and of its parents."""
    yield (text := file.read_text(encoding="utf-8"))
    if base := yaml.safe_load(text).get("base"):
        beside, named = file.parent / f"{base}.yaml", root / "recipes" / f"{base}.yaml"
        yield from layers(beside if beside.is_file() else named, root)


def family(recipe: str) -> str:
    return recipe.rpartition("/")[0]


def file_of(recipe: str, engine: str) -> Path:
    return FILES / engine / f"{recipe}.json"


def representatives(engine: str) -> list[str]:
    """The first recipe of every family that runs on an engine."""
    able = [recipe for recipe in shipped() if may(recipe, engine)]
    return list({family(recipe): recipe for recipe in reversed(able)}.values())[::-1]


def launches(recipes: Sequence[str], engine: str, processes: int) -> list[Launch]:
    """One launch a family: starting a process costs more than a run."""
    able = [recipe for recipe in recipes if may(recipe, engine)]
    groups = dict.fromkeys(family(recipe) for recipe in able)
    return [Launch(engine, processes, tuple(r for r in able if family(r) == group)) for group in groups]


# --- run ---

MAKING = threading.Lock()
"""Two threads that import parts of transformers at once may not find them."""


def trajectories(launch: Launch, root: Path = ROOT) -> dict[str, Any]:
    """The trajectory of every recipe of a launch with the code of the tree `root`, by its name."""
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        folder = Path(name)
        with MAKING:
            make_folder(folder, launch.recipes, root)
        words = start(launch, folder, root)
        files = {recipe: folder / "results" / f"{recipe.replace('/', '.')}.json" for recipe in launch.recipes}
        lost = {"failed": f"no trajectory was written\n{words[-3000:]}"}
        return {r: json.loads(file.read_text()) if file.is_file() else lost for r, file in files.items()}


def make_folder(folder: Path, recipes: Sequence[str], root: Path) -> None:
    """The models and tables that twins ask for; twins import their students with the tree `root`."""
    if any(map(is_twin, recipes)):
        command = [sys.executable, str(HERE.parent / "tiny" / "tiny_twins.py"), str(folder)]
        subprocess.run(command, env=dict(os.environ) | {"PYTHONPATH": str(root)}, check=True, capture_output=True)


def start(launch: Launch, folder: Path, root: Path) -> str:
    """Run the processes of a launch to their end; what they printed."""
    command = [sys.executable, str(HERE / "runner.py"), str(folder), launch.engine, *launch.recipes]
    log = folder / "log.txt"
    with open(log, "ab") as file:
        started = [
            subprocess.Popen(command, env=environment, stdout=file, stderr=file)
            for environment in environments(launch, root, folder)
        ]
        wait(started)
    return log.read_text(encoding="utf-8", errors="replace")


def environments(launch: Launch, root: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Of each process: the tree's code first, one thread, and the rendezvous that a launcher would set."""
    places = {"PYTHONPATH": str(root), "VIDALIGN_CACHE": str(folder / "cache")}
    common = {"OMP_NUM_THREADS": "1"} | dict(os.environ) | launch.pinned | places
    if launch.processes == 1:
        yield common
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(launch.processes)}
    for rank in range(launch.processes):
        yield common | meet | {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def wait(started: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended; when one fails or time is up, the others are killed."""
    deadline = time.monotonic() + LONGEST
    while any(process.poll() is None for process in started):
        if any(process.poll() for process in started) or time.monotonic() > deadline:
            for process in started:
                process.kill()
        time.sleep(0.1)


# --- compare ---


def rounded(value: Any) -> Any:
    """Numbers at `DIGITS` significant digits, in containers too."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def differences(expected: Any, result: Any, relative: float = 0.0, absolute: float = 0.0, where: str = "") -> list[str]:
    """Every place in which two trajectories differ, in order."""
    if isinstance(expected, dict) and isinstance(result, dict):
        names = [*expected, *(name for name in result if name not in expected)]
        pairs = ((name, expected.get(name, "nothing"), result.get(name, "nothing")) for name in names)
        found = (differences(one, two, relative, absolute, f"{where}, {name}".strip(", ")) for name, one, two in pairs)
        return [line for lines in found for line in lines]
    same = expected == result or (expected != expected and result != result)
    if isinstance(expected, float) and isinstance(result, float):
        same = same or abs(result - expected) <= max(relative * abs(expected), absolute)
    return [] if same else [f"{where}: {said(result, expected)} instead of {said(expected, result)}"]


def said(value: Any, other: Any) -> str:
    """A value as it is printed; of a list what the other one lacks."""
    if isinstance(value, list) and isinstance(other, list):
        return str([item for item in value if item not in other])
    return f"{value!r}"


def tolerance(recipe: str, engine: str, processes: int) -> tuple[float, float]:
    """Largest relative and absolute difference of a run from its file."""
    recorded = processes == PROCESSES[engine][0]
    return EXACT if recorded and precision(recipe, engine) == "fp64" else ROUNDED


def against_file(recipe: str, engine: str, processes: int, result: dict[str, Any]) -> list[str]:
    """How a trajectory differs from the committed one."""
    if "failed" in result:
        return [result["failed"]]
    file = file_of(recipe, engine)
    again = f"python tests/golden/trajectories.py record {recipe}"
    if not file.is_file():
        return [f"{file.relative_to(ROOT)} is missing: write it with `{again}`"]
    expected = json.loads(file.read_text(encoding="utf-8"))
    found = differences(expected, result, *tolerance(recipe, engine, processes))
    loose = differences(expected, result, *ROUNDED)
    return [line for line in found if line in loose or "held_out" not in line]  # evaluations sample in fp32


# --- commands ---


def record(recipes: Sequence[str], workers: int) -> int:
    """Write the trajectories; returns how many runs failed."""
    failed = 0
    for launch, results in run_all(recipes, workers, first_only=True):
        for recipe, result in results.items():
            if "failed" in result:
                failed += 1
                print(f"{recipe}, {launch}: {result['failed']}")
                continue
            file = file_of(recipe, launch.engine)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rounded(result), indent=1) + "\n", encoding="utf-8")
    return failed


def check(recipes: Sequence[str], workers: int) -> int:
    """Compare with the committed trajectories; returns how many runs differ."""
    wrong = 0
    for launch, results in run_all(recipes, workers):
        for recipe, result in results.items():
            wrong += reported(recipe, launch, against_file(recipe, launch.engine, launch.processes, result))
    return wrong


def compare(rev: str, recipes: Sequence[str], workers: int) -> int:
    """Compare this tree with a commit, bit for bit, on this machine; returns how many runs differ."""
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="golden-rev-") as name:
        tree = Path(name)
        archive = subprocess.run(["git", "archive", rev], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", name], input=archive, check=True)
        both = [recipe for recipe in recipes if recipe in shipped(tree)]
        if only := sorted(set(recipes) - set(both)):
            print(f"not in {rev}: {', '.join(only)}")
        old = dict(run_all(both, workers, root=tree))
        for launch, results in run_all(both, workers):
            for recipe, result in results.items():
                failures = [one["failed"] for one in (old[launch][recipe], result) if "failed" in one]
                wrong += reported(recipe, launch, failures or differences(old[launch][recipe], result))
    return wrong


def run_all(
    recipes: Sequence[str], workers: int, root: Path = ROOT, first_only: bool = False
) -> Iterator[tuple[Launch, dict[str, Any]]]:
    """Every launch with its trajectories, `workers` at a time."""
    counts = {engine: numbers[:1] if first_only else numbers for engine, numbers in PROCESSES.items()}
    todo = [one for engine, numbers in counts.items() for n in numbers for one in launches(recipes, engine, n)]
    with ThreadPoolExecutor(workers) as pool:
        yield from zip(todo, pool.map(lambda launch: trajectories(launch, root), todo), strict=True)


def reported(recipe: str, launch: Launch, found: list[str]) -> bool:
    """Print whether a run agrees, and the first place where it does not."""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    print(f"{recipe}, {launch}: {found[0] + more if found else 'equal'}", flush=True)
    return bool(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["record", "check", "compare"])
    parser.add_argument("names", nargs="*", metavar="RECIPE", help="default: all; compare wants a commit first")
    parser.add_argument("--workers", type=int, default=2, help="launches at a time")
    asked = parser.parse_args()
    rev = asked.names.pop(0) if asked.verb == "compare" else ""
    recipes = asked.names or shipped()
    verbs = {"record": record, "check": check, "compare": lambda *a: compare(rev, *a)}
    sys.exit(verbs[asked.verb](recipes, asked.workers) > 0)


if __name__ == "__main__":
    main()
