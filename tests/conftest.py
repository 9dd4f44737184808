"""Features of prompts are cached in a folder of the test run, not in that of the user; Ctrl-C reaches what is tested.

A shell starts its background jobs with SIGINT ignored, and their children inherit that.
"""

from __future__ import annotations

import os
import signal
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="vidalign-cache-")
os.environ["VIDALIGN_CACHE"] = _cache.name
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
