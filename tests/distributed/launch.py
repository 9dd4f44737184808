"""Starts worker.py on several processes, with the rendezvous variables that a launcher would set."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")


def launch(world_size: int, folder: Path, *jobs: str, timeout: float = 900.0) -> list[int]:
    """Run the jobs on `world_size` ranks; the exit codes. When one rank fails, the others are killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(exist_ok=True)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    root = str(WORKER.parents[2])
    ranks = []
    for rank in range(world_size):
        environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": root}
        environment |= {"OMP_NUM_THREADS": "1"}
        with open(folder / f"rank{rank}.log", "ab") as log:
            command = [sys.executable, str(WORKER), str(folder), *jobs]
            ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    deadline = time.monotonic() + timeout
    while any(r.poll() is None for r in ranks):
        if any(r.poll() for r in ranks) or time.monotonic() > deadline:
            for process in ranks:
                process.kill()
        time.sleep(0.1)
    return [process.wait() for process in ranks]


def results(folder: Path, job: str, rank: int = 0) -> Any:
    """What `job` returned on `rank`; fails with the rank's last words if it did not get there."""
    file = folder / f"{job}-rank{rank}.json"
    assert file.is_file(), (folder / f"rank{rank}.log").read_text()[-3000:]
    return json.loads(file.read_text())
