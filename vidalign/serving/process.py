"""How a command ends as a process of its own."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


def run_as_process(main: Callable[[], None]) -> NoReturn:
    """Run a command and leave with its exit code, also while a reward still works in a daemon thread.

    Native code that comes back to an interpreter which is being taken down aborts the process, and its exit code is
    lost. So with daemon threads left, the process ends once everything is written, without taking the interpreter down.
    A second Ctrl-C, or a polite kill of a process that is leaving already, ends it at once and without a traceback.
    """
    code: object = 0
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_DFL)
    if not (code is None or isinstance(code, int)) or not any(thread.daemon for thread in threading.enumerate()):
        sys.exit(code)  # type: ignore[arg-type]
    threading._shutdown()  # type: ignore[attr-defined]  # as at the end of every process: other threads are awaited
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)
