"""`vidalign bench run | tune | compare | report`: objectives compared under one budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidalign.cli.bench_videos import export_videos, import_scores
from vidalign.cli.options import Plugins
from vidalign.errors import UserError, before_work

bench = typer.Typer(no_args_is_help=True, help="Compare objectives under one budget.")
bench.command("export-videos")(export_videos)
bench.command("import-scores")(import_scores)
ProtocolArgument = Annotated[
    str, typer.Argument(metavar="PROTOCOL", help="A YAML file, or one that `vidalign list protocols` prints.")
]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the protocol; they change its hash.")
]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list such as 0,1,2") from None


@bench.command()
def run(
    protocol: ProtocolArgument,
    overrides: Changes = None,
    objectives: Annotated[str | None, typer.Option(help="Rows to run, a,b,c; default all.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Training seeds, 0,1,2; default those of the protocol.")] = None,
    small: Annotated[bool, typer.Option("--small", help="The protocol's small version.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells at the same time; default one for each accelerator or core.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the result here too; cells that it holds already are kept.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Run a protocol, or what is left of it; cells that are finished are kept."""
    from vidalign.bench.results import write_results
    from vidalign.bench.runner import RESULTS, BenchRun, prepare
    from vidalign.provenance import refuse_unclean

    rows = objectives.split(",") if objectives is not None else None
    chosen = _numbers(seeds) if seeds is not None else None
    plugins = list(plugin or [])
    known = [out] if out is not None else []
    if out is not None:
        refuse_unclean(out)
    with before_work():
        one = BenchRun(protocol, list(overrides or []), small, rows, chosen, jobs, plugins, known, say=typer.echo)
        prepare(one.protocol)
    results = one.run()
    if out is not None:
        write_results(out, results)
    typer.echo(f"result: {out or one.folder / RESULTS}")
    if one.errors:
        raise UserError(
            f"{len(one.errors)} cells failed",
            why="; ".join(f"{row}, seed {seed}" for row, seed in one.errors),
            fix=f"repair them, then `{one.command()}` runs these alone",
        )


@bench.command()
def tune(
    protocol: ProtocolArgument,
    overrides: Changes = None,
    rows: Annotated[str | None, typer.Option(help="Rows to tune, a,b,c; default all.")] = None,
    small: Annotated[bool, typer.Option("--small", help="The protocol's small version.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trials at the same time; default one for each accelerator or core.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the result here too; rows that it holds already are kept.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Choose learning rate, KL weight and group size of every row on training prompts; finished trials are kept.

    For example: vidalign bench tune dopd_table --rows opd,dopd
    """
    from rich.console import Console

    from vidalign.bench.results import write_json
    from vidalign.bench.tune import TuneRun, check_conditions, tuning_table, with_rows_of
    from vidalign.provenance import refuse_unclean
    from vidalign.reading import read_json

    if out is not None:
        refuse_unclean(out)
    chosen = rows.split(",") if rows is not None else None
    with before_work():
        one = TuneRun(protocol, list(overrides or []), small, chosen, jobs, list(plugin or []), say=typer.echo)
        if out is not None and out.is_file():
            check_conditions(read_json(out), one.conditions)
    file = one.run()
    document = read_json(file)
    if out is not None:
        write_json(out, with_rows_of(read_json(out), document) if out.is_file() else document)
    Console().print(tuning_table(document))
    for row in document["rows"]:
        words = f"overrides: [{', '.join(row['overrides'])}]" if row["overrides"] else "its own settings are the best"
        typer.echo(f"{row['row']}: {words}")
    typer.echo(f"result: {out or file}")


@bench.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="RESULT:ROW; RESULT is a file, or a protocol that was run.")],
    b: Annotated[str, typer.Argument(metavar="B", help="RESULT:ROW, or ROW of the same result.")],
    split: Annotated[str, typer.Option(help="Prompts: held_out or out_of_domain.")] = "held_out",
) -> None:
    """Row B minus row A with 95 % intervals, paired by prompt and training seed.

    For example: vidalign bench compare benchmarks/results/quickstart.json:base astrolabe
    """
    from rich.console import Console
    from rich.table import Table

    from vidalign.bench.comparison import varied
    from vidalign.report.model import TOO_FEW, TOO_FEW_WHY
    from vidalign.workflows.compare import compare as compare_rows

    with before_work():
        comparison = compare_rows(a, b, split)
    table = Table(
        title=f"{comparison.b} minus {comparison.a}, {split} prompts, 95 % intervals over {varied(comparison.seeds)}"
    )
    for column in ("metric", "difference", "95 % interval", "detectable", ""):
        table.add_column(column, overflow="fold")
    for one in comparison.differences:
        low, high = one.interval
        ends = f"{low:+.4f} .. {high:+.4f}"
        table.add_row(one.metric, f"{one.difference:+.4f}", ends, f"{one.detectable:.4f}", one.verdict)
    if any(one.verdict == TOO_FEW for one in comparison.differences):
        table.caption = TOO_FEW_WHY
    Console().print(table)


@bench.command()
def report(
    result: Annotated[str, typer.Argument(metavar="RESULT", help="A result file, or a protocol that was run.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; default runs/bench/PROTOCOL/report.html.")
    ] = None,
) -> None:
    """Write a result as one self-contained page."""
    from vidalign.bench.report import CLIPS, write_bench_report
    from vidalign.bench.results import read_results
    from vidalign.workflows.compare import result_file

    with before_work():
        results = read_results(file := result_file(result))
    target = out or Path("runs") / "bench" / results.protocol.name / "report.html"
    typer.echo(f"report: {write_bench_report(results, target, (CLIPS, file.parent / 'clips'))}")
