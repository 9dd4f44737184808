"""`vidalign sample`: clips of a student as GIF or MP4, written as they come; answers of a language student as text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from vidalign.cli.options import Best, Plugins, Semi, Step, Trust
from vidalign.data.cells import UTF_8, half_characters
from vidalign.engine.config import Precision
from vidalign.errors import UsageError

THEN = re.compile(r"\s*(\d+\.?\d*)\s*s\s+(\S.*)", re.DOTALL)
Prompts = Annotated[list[str], typer.Option("--prompt", help="What to show; may be given several times.")]
Out = Annotated[
    Path, typer.Option("--out", help="File to write: .mp4 where an encoder is there, .gif, .txt for answers.")
]
Weights = Annotated[
    str | None, typer.Argument(metavar="[STUDENT]", help="Weights, or a shipped name such as world/student.")
]
Run = Annotated[Path | None, typer.Option("--run", metavar="RUN", help="The folder of a run, instead of STUDENT.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Length in pixel frames; of a run by default as in training.")]
Then = Annotated[
    list[str] | None,
    typer.Option("--then", metavar="'2.5s TEXT'", help="Another prompt from this second on; may be repeated."),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", help="First frame of a video, or the picture that a vision-language student sees."),
]
Types = Annotated[
    Precision | None, typer.Option(help="Of weights and codec; by default that of the run's recipe, or auto.")
]
Kernels = Annotated[
    str, typer.Option(metavar="KERNELS", help="As student.attention; by default that of the run's recipe.")
]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="As student.compile; by default that of the run's recipe.")
]
Scale = Annotated[
    float, typer.Option("--scale", help="How much of a run's change its student has: W0 + s (W - W0), s in 0..4.")
]


def sample(
    prompt: Prompts,
    out: Out,
    student: Weights = None,
    run: Run = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Length in seconds.")] = None,
    frames: Frames = None,
    then: Then = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another clip.")] = 0,
    image: Images = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print how long each part of a chunk takes.")] = False,
    precision: Types = None,
    attention: Kernels = "",
    compile: Compile = None,
    step: Step = None,
    best: Best = False,
    scale: Scale = 1.0,
    semi: Semi = None,
    trust_checkpoint: Trust = False,
    plugin: Plugins = None,
) -> None:
    """Generate clips, or answers of a language student."""
    _check_words(prompt, student, run, best or step is not None, scale != 1 or semi is not None)
    from vidalign.students.samples import SampleRequest
    from vidalign.workflows.sample import sample_run, sample_student
    from vidalign.workflows.saved import Saved

    request = SampleRequest(
        tuple(prompt),
        out,
        frames=frames,
        seconds=seconds,
        seed=seed,
        images=tuple(image or ()),
        then=tuple(_change(text) for text in then or ()),
        stats=stats,
        attention=attention,
        compile=compile,
        say=lambda note: typer.echo(f"note: {note}", err=True),
    )
    if run is not None:
        saved = Saved(step, best, trust_checkpoint)
        made = sample_run(run, request, precision=precision, saved=saved, scale=scale, semi=semi)
    else:
        made = sample_student(student or "", request, precision=precision or "auto")
    for line in (*map(str, made.files), *("\n".join(times.lines()) for times in made.times)):
        typer.echo(line)


def _check_words(prompts: list[str], student: str | None, run: Path | None, of_step: bool, of_change: bool) -> None:
    """Something is asked of one student."""
    if not all(text.strip() for text in prompts):
        raise UsageError("a prompt is empty", where="--prompt", fix="say what to show")
    if why := next(filter(None, map(half_characters, prompts)), ""):
        raise UsageError("a prompt cannot be read", where="--prompt", why=why, fix=UTF_8)
    if (student is None) == (run is None):
        raise UsageError("one student is sampled", where="STUDENT", fix="name its weights, or a run with --run RUN")
    if student is not None and of_step:
        raise UsageError("weights have no steps", where="STUDENT", why="--best and --step are of a run's checkpoints")
    if student is not None and of_change:
        why = "--scale and --semi are of what a run changed"
        raise UsageError("weights were not changed by a run", where="STUDENT", why=why, fix="name it with --run RUN")


def _change(text: str) -> tuple[float, str]:
    """Second and prompt of a change such as ``2.5s the panda sleeps``."""
    if found := THEN.fullmatch(text):
        return float(found[1]), found[2].strip()
    raise UsageError(
        f"a prompt change is {text[:60]!r}",
        where="--then",
        why="it begins with the second at which it comes",
        fix="write '2.5s the panda sleeps'",
    )
