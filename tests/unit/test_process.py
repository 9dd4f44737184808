"""How a command leaves: its exit code, and signals that come while it is leaving already."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

LEAVING = """\
import atexit, os, signal, sys, threading, time
from vidalign.serving.process import run_as_process

def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    atexit.register(lambda: os.kill(os.getpid(), {sent}))
    if {busy}:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    print("error: no more clips", file=sys.stderr)
    sys.exit(3)

run_as_process(main)
"""


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "a thread at work"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, 0], ids=["ctrl-c", "polite kill", "nothing"])
def test_a_signal_while_leaving_ends_a_process_without_a_traceback(sent: int, busy: bool) -> None:
    """Seen in CI: a rank that was leaving when the launcher stopped it printed a traceback of a callback at exit."""
    code = LEAVING.format(sent=int(sent), busy=busy)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "error: no more clips\n" and done.returncode == (-sent if sent else 3)
