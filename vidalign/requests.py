"""Requests to servers of models."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Mapping
from typing import Any


def post_json(url: str, body: Mapping[str, Any], *, key: str, seconds: float) -> Any:
    """What a server answers to a JSON body. key: environment variable with the bearer token, empty for none.

    Raises `OSError` where it does not answer within so many seconds or answers with an error, and `ValueError` for an
    answer that is no JSON.
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {os.environ.get(key, '')}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return json.load(answer)
