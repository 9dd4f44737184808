"""`vidalign import PRESET`: a public checkpoint as a student's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vidalign.cli.options import Plugins


def import_(
    preset: Annotated[
        str, typer.Argument(metavar="PRESET", help="Family, see `vidalign list presets`, or a YAML file of your own.")
    ],
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="FILE|FOLDER|HUB", help="The weights; OWNER/NAME/FILE on the hub.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the student.")],
    key: Annotated[str, typer.Option(help="Part of a .pt file with the weights; default as the preset says.")] = "",
    lora: Annotated[str, typer.Option(metavar="FILE", help="LoRA file or PEFT folder to merge into the weights.")] = "",
    lora_alpha: Annotated[
        float | None, typer.Option(min=0.0, help="Alpha of the LoRA, where neither file nor preset says it.")
    ] = None,
    keep_lora: Annotated[
        bool, typer.Option("--keep-lora", help="Keep the LoRA as a trainable adapter beside the weights.")
    ] = False,
    base: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|HUB", help="Where VAE, text encoder and tokenizer are; default as the preset says."
        ),
    ] = "",
    heads: Annotated[
        int, typer.Option(min=0, help="Attention heads; default as the base says, or of 128 channels.")
    ] = 0,
    dtype: Annotated[
        Literal["", "float32", "bfloat16", "float16"], typer.Option(help="Type of the weights; default as stored.")
    ] = "",
    height: Annotated[int, typer.Option(min=0, help="Pixel height of clips; default as the preset says.")] = 0,
    width: Annotated[int, typer.Option(min=0, help="Pixel width of clips; default as the preset says.")] = 0,
    plugin: Plugins = None,
) -> None:
    """Make a student of a public checkpoint."""
    from vidalign.students.exchange import ImportOptions
    from vidalign.workflows.import_ import import_student

    options = ImportOptions(key, lora, lora_alpha, keep_lora, base, heads, dtype, height, width)
    made = import_student(preset, checkpoint, out, options)
    for note in made.notes:
        typer.echo(note)
    typer.echo(f"student: {made.folder}")
