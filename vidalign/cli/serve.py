"""`vidalign serve`: a reward over HTTP, for runs with `rewards: {...: {name: remote}}`."""

from __future__ import annotations

from typing import Annotated

import typer

from vidalign.cli.options import Plugins
from vidalign.errors import UsageError

INSTALL = "pip install 'vidalign[serve]'"


def serve(
    reward: Annotated[
        str, typer.Option("--reward", metavar="NAME", help="A reward of `vidalign list rewards`, or file.py:Class.")
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the reward.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; another than loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token: Annotated[
        str, typer.Option(help="What clients send as bearer token.", envvar="VIDALIGN_SERVE_TOKEN", show_envvar=True)
    ] = "",
    batch: Annotated[int, typer.Option(help="Most clips in one call of the reward.")] = 16,
    max_mb: Annotated[float, typer.Option(help="Most MiB of a request.")] = 256.0,
    queue: Annotated[int, typer.Option(help="Most requests at once; more get 429.")] = 32,
    device: Annotated[str, typer.Option(help="Where the clips are put; an accelerator if there is one.")] = "",
    warm_up: Annotated[bool, typer.Option(help="Score a grey clip at the start.")] = True,
    plugin: Plugins = None,
) -> None:
    """Serve a reward over HTTP until Ctrl-C or SIGTERM."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError("serving needs further packages", why=str(error), fix=INSTALL) from error
    from vidalign.serving.failure import LoadError
    from vidalign.serving.loading import accelerator, parse_settings
    from vidalign.serving.run import Options
    from vidalign.serving.run import serve as run
    from vidalign.serving.service import Limits
    from vidalign.workflows.serve import loader

    options = Options(host, port, token, warm_up, Limits(batch, max_mb, queue))
    try:
        run(loader(reward, parse_settings(settings or []), device or accelerator()), options)
    except LoadError as error:
        raise UsageError(str(error)) from error
