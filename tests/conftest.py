"""Features of prompts are cached in a folder of the test run, not in that of the user."""

from __future__ import annotations

import os
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="vidalign-cache-")
os.environ["VIDALIGN_CACHE"] = _cache.name
