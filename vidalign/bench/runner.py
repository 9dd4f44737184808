"""Runs a protocol: cells in processes of their own, side by side; a failed one is named and the others go on.

``runs/bench/NAME/`` holds a run folder, clips and a small JSON for every cell, ``protocol.yaml`` (the pinned protocol)
and ``results.json``. A finished cell is never run again, an interrupted one goes on from its checkpoint.
"""

from __future__ import annotations

import collections
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vidalign.bench.cell import MARK, cell_recipe, check_same_recipe, row_recipe, timed_steps
from vidalign.bench.comparison import detectable, splits_of
from vidalign.bench.differences import SEEDS, first_difference
from vidalign.bench.finished import check_same_hash, read_document, read_finished
from vidalign.bench.protocol import Protocol, load_protocol, weights_hash
from vidalign.bench.results import Cell, ProtocolStamp, Results, read_health, write_results
from vidalign.bench.reuse import Finished
from vidalign.bench.sections import REFERENCES
from vidalign.errors import DataError, Interrupted, Problem, RecipeError, UserError, nearest
from vidalign.owner import replacing
from vidalign.provenance import machine
from vidalign.tracking.stages import stages

RESULTS = "results.json"
CELL = (sys.executable, "-m", "vidalign.bench.cell")
"""The program of a cell."""
GRACE = 20.0
"""Seconds that a cell has to end after Ctrl-C before it is killed."""
SEED = re.compile(r"-(\d+)\.json$")
Job = tuple[str, int]
"""(row, training seed)"""


@dataclass
class BenchRun:
    """One call of ``vidalign bench run``."""

    protocol_name: str
    overrides: list[str] = field(default_factory=list)
    small: bool = False
    objectives: list[str] | None = None
    """Rows to run; None means all of them."""
    seeds: list[int] | None = None
    """Training seeds to run; None means those of the protocol."""
    jobs: int | None = None
    """Cells at the same time; None means one for each accelerator or core."""
    plugins: list[Path] = field(default_factory=list)
    """Python files that register metrics or what a recipe names."""
    known: list[Path] = field(default_factory=list)
    """Result files whose cells are taken over where protocol and recipe have the same hashes."""
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.protocol = load_protocol(self.protocol_name, self.overrides, small=self.small)
        self.rows = chosen_rows(self.protocol, self.objectives, "--objectives")
        self.chosen_seeds = list(dict.fromkeys(self.seeds if self.seeds is not None else self.protocol.seeds))
        self.processes: list[subprocess.Popen[str]] = []
        self.errors: dict[Job, str] = {}
        self.stopping = False

    @property
    def folder(self) -> Path:
        return self.protocol.folder

    def command(self) -> str:
        """The command line that does the same again."""
        words = ["vidalign", "bench", "run", self.protocol_name, *self.overrides]
        words += ["--small"] if self.small else []
        words += ["--objectives", ",".join(self.objectives)] if self.objectives is not None else []
        words += ["--seeds", ",".join(map(str, self.seeds))] if self.seeds is not None else []
        return shlex.join(words + self._plugin_words())

    def jobs_left(self) -> list[Job]:
        """The cells that have no result yet: references first, then seed by seed."""
        jobs = reference_jobs(self.protocol) + ([("health", 0)] if self.protocol.health.clips else [])
        jobs += [(row, seed) for seed in self.chosen_seeds for row in self.rows]
        return [job for job in jobs if job not in self.errors and not self._file(job).is_file()]

    def run(self) -> Results:
        """Run what is left and write the result; raises `Interrupted` after Ctrl-C, with what is finished written."""
        prepare(self.protocol)
        finished = Finished(self.protocol, self.known)
        self._check_finished()
        self._check_rows()
        self._take_over(finished)
        left, slots = self.jobs_left(), devices(self.jobs)
        self.say(f"{self.protocol.name} ({self.protocol.hash}): {len(left)} cells to run, {len(slots)} at a time")
        free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for slot in slots:
            free.put(slot)
        with stages("auto") as stage, ThreadPoolExecutor(len(slots)) as pool:
            ended = stage("cells", len(left))
            waiting = {pool.submit(self._run_cell, job, free): job for job in left}
            try:
                for done in as_completed(waiting):
                    self._report(waiting[done], done)
                    ended(1)
            except KeyboardInterrupt:
                self._stop(pool)
        results = self.collect()
        write_results(self.folder / RESULTS, results)
        if self.stopping:
            raise Interrupted(
                f"{len(self.jobs_left())} cells are not finished",
                where=str(self.folder),
                fix=f"go on with `{self.command()}`",
            )
        return results

    def collect(self) -> Results:
        """The finished cells of every row and seed in the folder, and the failures of this call."""
        protocol = self.protocol
        stored = {int(match[1]) for file in self.folder.glob("*-*.json") if (match := SEED.search(file.name))}
        seeds = sorted({*protocol.seeds, *self.chosen_seeds, *stored})
        cells = []
        health = self._health()
        jobs = reference_jobs(protocol) + [(row, s) for row in protocol.objectives for s in seeds]
        for row, seed in [*jobs, ("health", 0)]:
            if cell := self._finished((row, seed)):
                cells.append(cell)
            elif (row, seed) in self.errors:
                kind = "objective" if row in protocol.objectives else "reference"
                recipe = protocol.objectives[row].described if kind == "objective" else None
                cells.append(Cell(row, kind, seed, recipe=recipe, error=self.errors[row, seed]))
        for cell in cells:
            cell.command = self._command_of(cell)
            cell.sealed()
        results = Results(
            ProtocolStamp(protocol.name, protocol.hash, protocol.text),
            protocol.source.version,
            self.command(),
            {"description": machine(), "python": sys.version.split()[0], "cores": os.cpu_count()},
            protocol.all_prompts,
            cells,
            health,
            protocol.families,
            {name: row.baseline for name, row in protocol.objectives.items()},
            {name: row.claim for name, row in protocol.objectives.items() if row.claim},
        )
        results.detectable = {split: detectable(results, split) for split in splits_of(results)}
        return results

    def _finished(self, job: Job) -> Cell | None:
        """The cell of a job; None when it is not finished, failed, or cannot be read, which is an error like others."""
        if job in self.errors or job[0] == "health" or not self._file(job).is_file():
            return None
        try:
            return read_finished(self._file(job), self.protocol)
        except DataError as error:
            self._fail(job, str(error))
            return None

    def _health(self) -> dict[str, Any] | None:
        """The examination of the judges, likewise."""
        file = self._file(("health", 0))
        if ("health", 0) in self.errors or not file.is_file():
            return None
        try:
            return read_health(read_document(file, self.protocol, "health"), str(file))
        except DataError as error:
            self._fail(("health", 0), str(error))
            return None

    def _fail(self, job: Job, why: str) -> None:
        self.errors[job] = why
        self.say(f"{job[0]}, seed {job[1]}: FAILED: {why}")

    def _check_rows(self) -> None:
        """A row whose recipe cannot be read fails before any other has begun."""
        for row, seed in self.jobs_left():
            if row not in self.protocol.objectives:
                continue
            try:
                row_recipe(self.protocol, row, seed)
            except UserError as error:
                self._fail((row, seed), str(error))

    def _check_finished(self) -> None:
        """A finished cell whose recipe is another by now is named as failed: its numbers are not this row's."""
        for row, seed in ((row, seed) for row in self.rows for seed in self.chosen_seeds):
            if not self._file((row, seed)).is_file():
                continue
            folder = self.folder / f"{row}-{seed}"
            try:
                timed = self.protocol.budget.currency == "seconds"
                steps = timed_steps(self.protocol, row, seed, folder) if timed else None
                recipe = cell_recipe(self.protocol, row, seed, steps)
                check_same_recipe(folder, recipe)
                check_same_hash(self._file((row, seed)), recipe.hash)
            except UserError as error:
                self._fail((row, seed), str(error))

        for row in (*(["teacher"] if self.protocol.teacher is not None else []), *self.protocol.made):
            file = self._file((row, 0))
            if not file.is_file():
                continue
            try:
                if read_finished(file, self.protocol).recipe_hash != weights_hash(self.protocol, row):
                    file.unlink()  # of other weights, or another sampler: judged anew
            except UserError as error:
                self._fail((row, 0), str(error))

    def _take_over(self, finished: Finished) -> None:
        """What was measured elsewhere under the same conditions is not measured again. A result file that is written
        anew loses none of its cells."""
        if self.protocol.budget.currency == "seconds":
            return  # seconds of another run are not seconds of this one
        jobs = [*self.jobs_left(), *((row, seed) for row in self.protocol.objectives for seed in finished.seeds)]
        for row, seed in dict.fromkeys(jobs):
            try:
                if not self._file((row, seed)).is_file() and finished.take(row, seed):
                    self.say(f"{row}, seed {seed}: taken over")
            except UserError:
                continue  # its cell will say what is wrong with it

    def _command_of(self, cell: Cell) -> str:
        if cell.kind == "reference":
            return ""
        row = self.protocol.objectives.get(cell.row)
        first = row.prepare if row is not None else ""
        small = ["--small"] if self.small else []
        only = ["--objectives", cell.row, "--seeds", str(cell.seed), *self._plugin_words()]
        train = shlex.join(["vidalign", "bench", "run", self.protocol_name, *self.overrides, *small, *only])
        return f"{first} && {train}" if first else train

    def _plugin_words(self) -> list[str]:
        return [word for file in self.plugins for word in ("--plugin", str(file))]

    def _file(self, job: Job) -> Path:
        row, seed = job
        return self.folder / ("health.json" if row == "health" else f"{row}-{seed}.json")

    def _run_cell(self, job: Job, free: queue.SimpleQueue[dict[str, str]]) -> str:
        """Run one cell to its end; '' or why it failed, '' too when the run is being stopped."""
        slot = free.get()
        try:
            return "" if self.stopping else self._wait(job, slot)
        finally:
            free.put(slot)

    def _wait(self, job: Job, slot: dict[str, str]) -> str:
        row, seed = job
        small = ["--small"] if self.small else []
        arguments = [
            self.protocol_name,
            "--row",
            row,
            "--seed",
            str(seed),
            *small,
            *self._plugin_words(),
            *self.overrides,
        ]
        process = subprocess.Popen(
            [*CELL, *arguments],
            env={**os.environ, **slot},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        if self.stopping:
            process.send_signal(signal.SIGINT)
        assert process.stderr is not None, "stderr is a pipe"
        last = collections.deque(process.stderr, maxlen=20)
        code = process.wait()
        if code == 0 or self.stopping:
            return ""
        reported = [line.removeprefix(MARK).strip() for line in last if line.startswith(MARK)]
        if reported:
            return reported[-1]
        died = f"killed by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{died}: {' '.join(' '.join(last).split())[-300:]}" if last else died

    def _report(self, job: Job, done: Future[str]) -> None:
        """Report how a cell ended."""
        row, seed = job
        if self.stopping:
            return
        if why := done.result():
            self._fail(job, why)
        else:
            self.say(f"{row}, seed {seed}: done")

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        """Pass Ctrl-C on to the cells that run, and start no other."""
        self.stopping = True
        pool.shutdown(wait=False, cancel_futures=True)
        running = [process for process in self.processes if process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGINT)
        end = time.monotonic() + GRACE
        for process in running:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def prepare(protocol: Protocol) -> None:
    """Make the folder, or check that it belongs to this protocol, with any training seeds. Raises `UserError`."""
    file = protocol.folder / "protocol.yaml"
    try:
        if file.is_file():
            written = file.read_text(encoding="utf-8", errors="replace")
            if difference := first_difference(protocol.text, written, but=SEEDS):
                raise UserError(
                    f"{protocol.folder} holds cells of another protocol",
                    where=protocol.name,
                    why=difference,
                    fix="move the folder away, or put the protocol back",
                )
        protocol.folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(protocol.text, encoding="utf-8")
    except OSError as error:
        raise DataError("cannot write the protocol", where=str(protocol.folder), why=str(error)) from error


def reference_jobs(protocol: Protocol) -> list[Job]:
    """The start weights; the teacher where the protocol names one, the ground truth where it is known; what was made
    for other rows."""
    there = {"base": True, "teacher": protocol.teacher is not None, "ground_truth": protocol.has_truth}
    return [(row, 0) for row in (*(row for row in REFERENCES if there[row]), *protocol.made)]


def devices(jobs: int | None) -> list[dict[str, str]]:
    """Environment of each cell that runs at the same time: one thread, an accelerator of its own if there is one."""
    count = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = jobs or count or cores
    threads = {"OMP_NUM_THREADS": "1"}
    if not count:
        return [threads] * workers
    given = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return [threads | {"CUDA_VISIBLE_DEVICES": given[n % len(given)]} for n in range(workers)]


def chosen_rows(protocol: Protocol, names: Sequence[str] | None, option: str) -> list[str]:
    """The rows to run, all for None; `RecipeError` with the nearest name for unknown ones, which `option` gave."""
    if names is None:
        return list(protocol.objectives)
    problems = []
    for name in names:
        if name not in protocol.objectives:
            close = nearest(name, protocol.objectives)
            fix = f"did you mean {close!r}?" if close else f"rows: {', '.join(protocol.objectives)}"
            problems.append(Problem(f"there is no row {name!r} in {protocol.name}", option, fix=fix))
    if problems:
        raise RecipeError(problems)
    return list(dict.fromkeys(names))
