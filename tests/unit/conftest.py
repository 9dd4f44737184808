"""What several tests of this folder share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
from report_browser import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        yield browser
        browser.close()
