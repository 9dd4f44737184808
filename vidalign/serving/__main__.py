"""The command `vidalign-serve`: a reward of a Python file or an installed module, in an environment of its own."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import NoReturn

from .failure import LoadError
from .loading import accelerator, load, parse_settings
from .process import run_as_process
from .run import Options, serve
from .service import Limits


def process() -> NoReturn:
    """`main` as a process of its own."""
    run_as_process(main)


def main(arguments: list[str] | None = None) -> None:
    """Serve until a signal; exit code 2 for a mistake on the command line, 3 for a reward that cannot work."""
    given = _parser().parse_args(arguments)
    limits = Limits(given.batch, given.max_mb, given.queue)
    token = given.token or os.environ.get("VIDALIGN_SERVE_TOKEN", "")
    try:
        settings = parse_settings(given.settings)
        device = given.device or accelerator()
        options = Options(given.host, given.port, token, not given.no_warm_up, limits)
        serve(lambda: load(given.reward, settings, device), options)
    except LoadError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        traceback.print_exc()
        what = f"{given.reward} cannot be loaded or score a grey clip: {type(error).__name__}: {error}"
        print(f"error: {what} - repair it, or start with --no-warm-up", file=sys.stderr)
        sys.exit(3)


def _parser() -> argparse.ArgumentParser:
    usual, limits = Options(), Limits()
    parser = argparse.ArgumentParser("vidalign-serve", description="Serve a reward over HTTP.")
    parser.add_argument("--reward", required=True, metavar="REWARD", help="file.py:Class or module:Class")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the reward")
    parser.add_argument("--host", default=usual.host)
    parser.add_argument("--port", type=int, default=usual.port, help="0 takes a free one")
    parser.add_argument("--token", default="", help="what clients send; or VIDALIGN_SERVE_TOKEN")
    parser.add_argument("--batch", type=int, default=limits.batch, help="most clips in one call of the reward")
    parser.add_argument("--max-mb", type=float, default=limits.max_mb, help="most MiB of a request")
    parser.add_argument("--queue", type=int, default=limits.queue, help="most requests at once; more get 429")
    parser.add_argument("--device", default="", help="where the clips are put; an accelerator if there is one")
    parser.add_argument("--no-warm-up", action="store_true", help="do not score a grey clip at the start")
    return parser


if __name__ == "__main__":
    process()
