"""A trained language student in the forms that others read: a transformers folder, a PEFT folder, one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidalign.errors import CheckpointError, UsageError
from vidalign.owner import replacing
from vidalign.students.exchange import Leaving, trained_adapter
from vidalign.students.language_checkpoint import WEIGHTS, load, tokenizer_and_processor
from vidalign.students.language_config import SHIPPED_TOKENIZERS
from vidalign.tensor_writing import save_tensors

if TYPE_CHECKING:
    from vidalign.students.language import LanguageStudent

PEFT_WEIGHTS = "adapter_model.safetensors"


def export(leaving: Leaving, form: str, out: Path, dtype: str) -> Path:
    """Write `out` in one of `Language.forms`; dtype: of the tensors, empty = as they are stored. Raises `UsageError`
    where there is no such form of the student, before anything is written."""
    if form == "single":
        _student(leaving, dtype, out)
        return out
    if out.exists():
        raise UsageError(f"{out} exists already", where="--out", fix="name another one, or remove it")
    adapter = trained_adapter(leaving, "transformers") if form == "peft" else None
    with replacing(out) as partial:
        if adapter is None:
            _student(leaving, dtype, partial / WEIGHTS)
        else:
            _copy_adapter(adapter, partial, dtype)
    return out


def _student(leaving: Leaving, dtype: str, file: Path) -> None:
    student = load(str(leaving.path))
    if file.name != WEIGHTS:
        student.spec = replace(student.spec, tokenizer=_tokenizer_of_a_file(student))
    (student.to(getattr(torch, dtype)) if dtype else student).save(file, dict(leaving.made))


def _tokenizer_of_a_file(student: LanguageStudent) -> str:
    """The name of the student's tokenizer where it is shipped or on the hub. A file that named a folder would not load
    without it."""
    name = student.spec.tokenizer
    for shipped in SHIPPED_TOKENIZERS:
        if _writes_alike(student, shipped):
            return shipped
    if Path(name).is_dir():
        raise UsageError(
            "one file has no place for the student's tokenizer",
            where="--to single",
            why="the tokenizer is neither shipped nor on the hub",
            fix="take --to transformers, a folder that holds all",
        )
    return name


def _writes_alike(student: LanguageStudent, shipped: str) -> bool:
    """Whether a shipped tokenizer, and its processor for a student that sees pictures, is that of the student."""
    own, processor = student.chat.tokenizer, student.chat.processor
    try:
        known, beside = tokenizer_and_processor(shipped, student.model.config)
    except CheckpointError:  # it is of a world without pictures
        return False
    alike = known.chat_template == own.chat_template and known.get_vocab() == own.get_vocab()
    return alike and (processor is None or processor.to_dict() == beside.to_dict())


def _copy_adapter(adapter: Path, folder: Path, dtype: str) -> None:
    """The PEFT folder of a run; its factors in `dtype`."""
    from safetensors.torch import load_file

    folder.mkdir(parents=True, exist_ok=True)
    for file in adapter.iterdir():
        if file.name != PEFT_WEIGHTS:
            (folder / file.name).write_bytes(file.read_bytes())
    factors = load_file(adapter / PEFT_WEIGHTS)
    if dtype:
        factors = {name: value.to(getattr(torch, dtype)) for name, value in factors.items()}
    save_tensors(factors, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
