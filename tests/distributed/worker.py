"""One rank: `python worker.py FOLDER JOB...` runs jobs of toy.py and writes FOLDER/JOB-rankN.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import toy

from vidalign.engine import distributed


def main() -> None:
    folder, jobs = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    distributed.setup()
    for job in jobs:
        result = getattr(toy, job)(folder)
        (folder / f"{job}-rank{distributed.rank()}.json").write_text(json.dumps(result))
    distributed.shutdown()


if __name__ == "__main__":
    main()
