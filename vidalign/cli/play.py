"""`vidalign play`: a page on which chunks of a student are seen as they are made."""

from __future__ import annotations

from typing import Annotated

import typer

from vidalign.cli.options import Plugins, Semi
from vidalign.cli.serve import INSTALL
from vidalign.errors import UsageError


def play(
    student: Annotated[
        str, typer.Argument(metavar="STUDENT_OR_RUN", help="Weights, a shipped name, or the folder of a run.")
    ],
    compare: Annotated[
        str, typer.Option("--compare", metavar="RUN", help="A run or weights beside it, instead of a run's start.")
    ] = "",
    semi: Semi = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Judges every chunk; by default what a run's prompts offer."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="What stands on the page at first.")] = "",
    seconds: Annotated[float, typer.Option("--seconds", help="Length of a clip on the page at first.")] = 6.0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8090,
    token: Annotated[
        str,
        typer.Option(help="Opens the page any number of times.", envvar="VIDALIGN_PLAY_TOKEN", show_envvar=True),
    ] = "",
    queue: Annotated[int, typer.Option(min=1, help="Most pages at once; more are asked to wait.")] = 4,
    plugin: Plugins = None,
) -> None:
    """Stream a student to a page until Ctrl-C: type a prompt, change it in mid-stream, compare before and after."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise UsageError("the page needs further packages", why=str(error), fix=INSTALL) from error
    from vidalign.play.panes import open_stage
    from vidalign.play.run import Options, serve
    from vidalign.play.session import Start

    Start(prompt or "a prompt", seconds=seconds)
    serve(
        lambda: open_stage(student, compare, semi, metric or (), plugin or (), prompt, seconds),
        Options(host, port, token, queue),
    )
