"""The command `vidalign`: one verb a file, the same words as the Python API.

Exit codes: 0 done, 2 a mistake in the recipe or on the command line, 3 a mistake met while running, 4 too little
memory on the accelerator, 130 interrupted.
Mistakes of the user are reported without a traceback; a traceback means a fault of vidalign.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
import warnings
from typing import Annotated, NoReturn, TextIO

import typer
from rich.console import Console

import vidalign
from vidalign.cli import (
    bench,
    collect,
    doctor,
    evaluate,
    export,
    import_,
    list_,
    merge,
    new,
    plan,
    play,
    prepare,
    report,
    rewards,
    sample,
    serve,
    show,
    train,
    validate,
)
from vidalign.cli.launch import leave_mistake
from vidalign.deferred import defer
from vidalign.errors import UsageError, UserError
from vidalign.serving.process import run_as_process

INTERRUPTED, FAULT = 130, 1
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG}
"""What goes wrong with a disk, not with us."""
PATHS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
"""What goes wrong with a path that was named."""

app = typer.Typer(
    name="vidalign",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vidalign {vidalign.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Align causal video students on-policy."""


app.command("new")(new.new)
app.command("cp")(new.cp)
app.command("prepare")(prepare.prepare)
app.command("train")(train.train)
app.command("collect")(collect.collect)
app.command("merge")(merge.merge)
app.command("sample")(sample.sample)
app.command("play")(play.play)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("serve")(serve.serve)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.add_typer(bench.bench, name="bench")
app.add_typer(rewards.rewards, name="rewards")
app.command("list")(list_.list_)
app.command("show")(show.show)
app.command("validate")(validate.validate)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)


def process() -> NoReturn:
    """`main` as a process of its own."""
    run_as_process(main)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave with its exit code. A polite kill (SIGTERM) ends it as Ctrl-C does."""
    warnings.showwarning = _warn
    defer("torch")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(arguments)
    except UserError as error:
        _leave(error)
    except OSError as error:
        if error.errno in PATHS:
            why, where = f"{error.strerror}: a part of it is a file, or too long for a name", _short(error.filename)
            _leave(UsageError("this path cannot be used", where=where, why=why, fix="name another one"))
        if error.errno not in DISK:
            _leave_fault(error)
            raise
        fix = "free some space or choose another folder; what had been saved is kept"
        _leave(UserError("cannot write or read", where=str(error.filename or ""), why=str(error.strerror), fix=fix))
    except Exception as error:
        _leave_fault(error)
        raise
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            _interrupted()
        raise


def _short(name: object) -> str:
    """A path as it is shown, a very long one cut in the middle."""
    text = str(name or "")
    return text if len(text) <= 120 else f"{text[:60]}...{text[-40:]}"


def _leave(error: UserError) -> NoReturn:
    """End with a mistake of the user; one process of several leaves it to the one that started them."""
    if not leave_mistake(error, error.exit_code):
        _tell(error)
    sys.exit(error.exit_code)


def _leave_fault(error: Exception) -> None:
    """A fault of vidalign: one process of several ends here, and the one that started them shows the traceback."""
    if leave_mistake(error, FAULT):
        sys.exit(FAULT)


def _tell(error: UserError) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    count = len(error.problems)
    if count > 1:
        console.print(f"[red]{count} problems:[/red]")
    for problem in error.problems:
        console.print(f"[red]{error.label}:[/red] ", end="")
        console.print(str(problem), markup=False)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning meant for users in one line; those of libraries are for developers and stay silent."""
    if category is UserWarning:
        typer.secho("warning: ", fg="yellow", err=True, nl=False)
        typer.echo(str(message), err=True)


def _interrupted() -> None:
    message = "Interrupted: what had been saved is kept; `vidalign train ... --resume` goes on from there."
    print(message, file=sys.stderr)
    sys.exit(INTERRUPTED)
