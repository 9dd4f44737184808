"""What this machine has and what cannot run on it: the block of `vidalign doctor`, for a bug report.

No name of a user or a host is in it, and paths below the home folder are shortened.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement

from vidalign.provenance import commit
from vidalign.version import VERSION

EXTRAS = {
    "bench": "rows of benchmarks that compare with TRL",
    "deepspeed": "engine.name=deepspeed",
    "docs": "make docs",
    "math": "the grader `math`",
    "serve": "vidalign serve",
    "wandb": "trackers={wandb: ...}",
}
"""What each extra is for; `dev` is for a clone."""
LEAST_DISK = 2 * 2**30
"""Free bytes below which a run may not be able to save: the checkpoints of a small run and its report."""
GIB = 2**30


@dataclass
class Diagnosis:
    """What was found, in sections of lines; what breaks every run, and what some commands lack."""

    sections: dict[str, list[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    """Each is a sentence with a fix; the command ends with 3."""
    missing: list[str] = field(default_factory=list)
    """What cannot run here, and why."""

    def text(self) -> str:
        """Everything as one block."""
        sections = {**self.sections, "cannot run": self.missing or ["nothing known"]}
        if self.broken:
            sections["BROKEN"] = self.broken
        lines = [f"{title}\n" + "\n".join(f"  {line}" for line in found) for title, found in sections.items()]
        return "\n".join(["```", *lines, "```"])


def diagnose(runs: Path, seconds: float = 120.0) -> Diagnosis:
    """Look at packages, devices, disks and processes.

    runs: folder below which runs are written; it need not be there. seconds: longest time that two processes may take
    to meet.
    """
    from vidalign.text.cache import default_folder

    found = Diagnosis()
    found.sections["vidalign"] = [f"{VERSION} {commit()}".strip(), f"Python {sys.version.split()[0]}, {_system()}"]
    _packages(found)
    _devices(found)
    _disks(found, {"runs": runs, "cache": default_folder()})
    _processes(found, seconds)
    return found


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _packages(found: Diagnosis) -> None:
    """Versions of every required package, and which extras are whole."""
    try:
        wanted = [Requirement(text) for text in metadata.requires("vidalign") or []]
    except metadata.PackageNotFoundError:
        found.sections["packages"] = ["vidalign is not installed: its requirements are unknown"]
        found.missing.append("`pip install vidalign` checks: the package runs from a folder that is not installed")
        return
    core = [requirement for requirement in wanted if requirement.marker is None]
    found.sections["packages"] = [_version(requirement) for requirement in core]
    for requirement in core:
        if wrong := _wrong(requirement):
            found.broken.append(f"{wrong} - pip install '{_plain(requirement)}'")
    extras = {}
    for extra, use in EXTRAS.items():
        parts = [one for one in wanted if one.marker is not None and one.marker.evaluate({"extra": extra})]
        if not parts:
            continue  # of another version
        lacking = [wrong for one in parts if (wrong := _wrong(one))]
        extras[extra] = not lacking
        if lacking:
            found.missing.append(f"{use} - {'; '.join(lacking)} - pip install 'vidalign[{extra}]'")
    found.sections["extras"] = [f"{extra}: {'installed' if whole else 'no'}" for extra, whole in extras.items()]


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _installed(requirement: Requirement) -> str:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return ""


def _version(requirement: Requirement) -> str:
    return f"{requirement.name} {_installed(requirement) or 'MISSING'}"


def _wrong(requirement: Requirement) -> str:
    """What is wrong with the installed version, '' if nothing."""
    version = _installed(requirement)
    if not version:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, {requirement.specifier} is required"
    return ""


def _devices(found: Diagnosis) -> None:
    """Processors and accelerators with their memory, and whether they compute bf16."""
    import torch

    from vidalign.engine import distributed

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [f"CPU: {cores} cores, {torch.get_num_threads()} threads of torch, {memory:.0f} GiB"]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(f"cuda:{index}: {name}, {total / GIB:.0f} GiB, {free / GIB:.0f} free")
    native = distributed.resolve_precision("auto") == "bf16"
    lines.append(f"bf16 on {distributed.device().type}: {'native' if native else 'emulated, use fp32'}")
    lines.append(f"torch: CUDA {torch.version.cuda or 'not built in'}")
    found.sections["devices"] = lines
    if not torch.cuda.is_available():
        why = "no GPU is visible" if torch.version.cuda else "this torch is built for the CPU"
        found.missing.append(f"recipes of real size (wan_1_3b, longlive2_5b, qwen3, ...) in useful time - {why}")
    elif not native:
        found.missing.append("engine.precision=bf16 at full speed - the device does not compute it natively")


def _disks(found: Diagnosis, folders: dict[str, Path]) -> None:
    """Free space where things are written, and whether one may write there."""
    lines = []
    for what, folder in folders.items():
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free, name = shutil.disk_usage(there).free, _short(folder)
        lines.append(f"{what} {name}: {free / GIB:.1f} GiB free")
        if not os.access(there, os.W_OK) or not there.is_dir():
            found.broken.append(f"{what} cannot be written in {name} - choose another folder")
        elif free < LEAST_DISK:
            found.broken.append(f"{free / GIB:.1f} GiB are left for {what} in {name} - free some, 2 GiB at least")
    found.sections["disk"] = lines


def _short(path: Path) -> str:
    """A path without the name of the home folder."""
    home, whole = Path.home(), path.absolute()
    return f"~/{whole.relative_to(home)}" if whole.is_relative_to(home) else str(path)


def _processes(found: Diagnosis, seconds: float) -> None:
    """Let two processes meet, on two GPUs where there are as many, else on the CPU."""
    import torch

    hidden = {} if torch.cuda.device_count() > 1 else {"CUDA_VISIBLE_DEVICES": ""}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    where = ["--rdzv-endpoint", "localhost:0", "-m", "vidalign.workflows.ping"]
    environment = {**_alone(), "OMP_NUM_THREADS": "1", **hidden}
    answer, why = _answer([sys.executable, *launch, *where], environment, seconds)
    found.sections["process group"] = [answer or "no answer"]
    if why:
        found.broken.append(f"two processes cannot talk to each other: {why} - see docs/deepspeed.md")


def _alone() -> dict[str, str]:
    """The environment without what a launcher has set."""
    launcher = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {key: value for key, value in os.environ.items() if key not in launcher}


def _answer(command: list[str], environment: dict[str, str], seconds: float) -> tuple[str, str]:
    """(the last line that a command prints, '') or ('', why there is none). Its processes end with it."""
    process = subprocess.Popen(
        command, env=environment, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return "", f"no answer in {seconds:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        raised = [line.strip() for line in errors.splitlines() if re.match(r"\s*[\w.]+(Error|Exception): ", line)]
        return "", next(iter(raised), f"exit code {process.returncode}")
    return next(reversed(out.strip().splitlines()), ""), ""
