"""Requests to servers of models."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

BUSY = (429, 500, 502, 503, 504)
"""Answers of a server that may do better in a moment."""


def post_json(url: str, body: Mapping[str, Any], *, key: str, seconds: float, retries: int = 0) -> Any:
    """What a server answers to a JSON body. key: environment variable with the bearer token, empty for none. retries:
    how often a request is repeated, after 1, 2, 4, ... seconds, that nothing or a busy server has answered.

    Raises `OSError` where it does not answer within so many seconds or answers with an error, and `ValueError` for an
    answer that is no JSON.
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {os.environ.get(key, '')}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    for number in range(retries + 1):
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                return json.load(answer)
        except OSError as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code not in BUSY
            if refused or number == retries:
                raise
            time.sleep(2.0**number)
    raise AssertionError("the last failure is raised")
