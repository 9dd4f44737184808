"""One rank: `python command_worker.py FOLDER JOB...` runs the commands whose words stand in FOLDER/JOB.json.

It writes exit code and standard error to FOLDER/JOB-rankN.json. Starting a process costs more than most commands.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from vidalign import cli


def run(words: list[str]) -> tuple[int, str]:
    """Exit code and standard error of one command."""
    errors, code = io.StringIO(), 0
    with contextlib.redirect_stderr(errors):
        try:
            cli.main(words)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    return code, errors.getvalue()


def main() -> None:
    folder, jobs = Path(sys.argv[1]), sys.argv[2:]
    for job in jobs:
        result = run(json.loads((folder / f"{job}.json").read_text(encoding="utf-8")))
        (folder / f"{job}-rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
