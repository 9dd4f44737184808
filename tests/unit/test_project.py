"""The project's own files agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_ci_runs_every_python_that_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [m[1] for line in project["classifiers"] if (m := re.search(r"Python :: (3\.\d+)$", line))]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"


def test_ci_runs_the_lowest_and_the_newest_requirements() -> None:
    """`constraints-lowest.txt` holds the lower bounds of pyproject.toml, all of them and nothing else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [r for name, extra in project["optional-dependencies"].items() if name != "bench" for r in extra]
    bounds = dict(re.split(">=|,", requirement)[:2] for requirement in [*project["dependencies"], *extras])
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    assert dict(line.split("==") for line in lines if not line.startswith("#")) == bounds
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    runs = workflow["jobs"]["requirements"]["strategy"]["matrix"]["include"]
    assert [run["constraints"] for run in runs] == ["constraints-lowest.txt", "/dev/null"]


def test_the_version_is_stated_once_in_two_places() -> None:
    import vidalign

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == vidalign.__version__
