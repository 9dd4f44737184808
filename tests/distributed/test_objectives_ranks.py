"""Every objective of the registry trains the same student on two processes as on one, and logs the same numbers."""

from __future__ import annotations

import pytest

from vidalign import registry
from vidalign.testing import check_objective

BUILT_IN = [name for name, source in registry.names("objectives").items() if source == "vidalign"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_two_processes_train_the_student_of_one(name: str) -> None:
    check_objective(name, promises=["ranks"])
