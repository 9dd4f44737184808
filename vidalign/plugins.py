"""The plugin files of a run, RUN/plugins.json: they are loaded with it and need not be named again."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vidalign import registry
from vidalign.errors import UsageError, before_work
from vidalign.reading import read_json

FILE_NAME = "plugins.json"


def keep_plugins(run: Path) -> None:
    """Write down the plugin files that are loaded now."""
    file = run / FILE_NAME
    if files := registry.plugin_files():
        file.write_text(json.dumps(files, indent=1), encoding="utf-8")
    else:
        file.unlink(missing_ok=True)


@before_work()
def load_plugins_of(run: Path) -> None:
    """Load the plugin files of a run beside those that are loaded, which take the place of files of the same name.

    They are code: `UsageError` for a list that another user wrote, for one that cannot be read and for a missing file,
    unless others are loaded, such as those given with --plugin.
    """
    file = run / FILE_NAME
    loaded = {Path(name).name for name in registry.plugin_files()}
    if not file.exists():
        return
    try:
        files = read_json(file)
        if not (isinstance(files, list) and all(isinstance(name, str) and "\0" not in name for name in files)):
            raise ValueError("it is no list of file names")
        owner = file.stat().st_uid
        if owner != os.getuid():
            raise ValueError(f"plugins are code, and it belongs to user {owner}, you are user {os.getuid()}")
    except (OSError, ValueError) as error:
        if loaded:
            return
        raise UsageError(
            "the plugin files of the run are not loaded",
            where=str(file),
            why=str(error),
            fix="name those that you trust with --plugin FILE",
        ) from error
    for name in files:
        there = Path(name).is_file()
        if not there and not loaded:
            raise UsageError(
                f"the run's plugin file {name} is not there",
                where=str(file),
                fix="say where it is now with --plugin FILE",
            )
        if there and Path(name).name not in loaded:
            registry.load_plugin_file(name)
