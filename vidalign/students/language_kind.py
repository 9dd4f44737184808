"""The kind of student `language`, as it is registered: light, so that a recipe is checked without its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vidalign.errors import DataError, UserError
from vidalign.reading import regular
from vidalign.students.kind import Sizes, StudentKind
from vidalign.students.language_config import ChatConfig, LanguageSpec, Sampling, is_hub_name, is_transformers
from vidalign.students.samples import SampleRequest, Samples

if TYPE_CHECKING:
    from vidalign.codecs.base import Codec
    from vidalign.data.source import PromptSource
    from vidalign.recipe.draft import Draft
    from vidalign.recipe.schema import StudentChoice
    from vidalign.students.exchange import Leaving
    from vidalign.students.language import LanguageStudent
    from vidalign.text.features import PromptFeatures


class Language(StudentKind[LanguageSpec, "LanguageStudent"]):
    """A causal language model, or an image-text-to-text model, of transformers."""

    spec_type = LanguageSpec
    makes = "texts"
    asked = "examples"
    saved = "student/model.safetensors"
    forms: ClassVar[Mapping[str, str]] = {
        **StudentKind.forms,
        "transformers": "a folder that AutoModelForCausalLM, pipeline and servers load",
        "peft": "the trained adapter, a folder that PeftModel.from_pretrained loads",
    }
    adapter_form = "peft"

    @dataclass
    class Config:
        """Settings of a language student."""

        chat: ChatConfig | None = None
        """Chat template, instead of the settings in its weights."""
        sampling: Sampling | None = None
        """How it answers, instead of the settings in its weights."""
        freeze: list[str] = field(default_factory=list)
        """What is not trained in full fine-tuning: `text` (the language model) or `vision` (the vision tower) of a
        vision-language model, and layers or parameters by a tail (`embed_tokens`) or a glob (`layers.[0-3].*`)."""

    @classmethod
    def network(cls) -> type[LanguageStudent]:
        from vidalign.students.language import LanguageStudent

        return LanguageStudent

    @classmethod
    def build(cls, student: StudentChoice, seed: int) -> LanguageStudent:
        from vidalign.students.language_checkpoint import chat_of

        own = student.config
        chat_of(cls._own(student)).check()  # before the weights are read
        return super().build(student, seed).configure(own.chat, own.sampling).freeze(own.freeze)

    @classmethod
    def fitted(
        cls, student: LanguageStudent, prompts: PromptSource, held_out: PromptSource, count: int
    ) -> PromptSource:
        """Raises `DataError` for a row that is longer than a prompt may be, with its place, before training."""
        from vidalign.students.lengths import fitting, rows_too_long

        chat = student.chat
        if student.spec.chat.long_prompts != "cut":
            for place, _, tokens in rows_too_long(held_out, chat.excess, count):
                raise chat.room.too_long(f"{place}, for evaluation", tokens)
        return fitting(prompts, chat, student.spec.chat.long_prompts)

    @classmethod
    def stand_in(cls, student: StudentChoice) -> tuple[LanguageStudent, None, Codec]:
        """A tiny student with the real one's tokenizer, chat and sampling, and random weights; no weights are read."""
        from vidalign.codecs.base import NoCodec
        from vidalign.students.language_stand_in import stand_in

        return stand_in(cls._own(student)), None, NoCodec()

    @classmethod
    def unloaded(cls, student: StudentChoice) -> tuple[LanguageStudent, None, Codec]:
        from vidalign.codecs.base import NoCodec
        from vidalign.students.language_stand_in import unloaded

        return unloaded(cls._own(student)).freeze(student.config.freeze), None, NoCodec()

    @classmethod
    def _own(cls, student: StudentChoice) -> LanguageSpec:
        """The specification of a recipe's student, with the recipe's own settings."""
        spec, own = cls.spec(student), student.config
        return replace(spec, chat=own.chat or spec.chat, sampling=own.sampling or spec.sampling)

    @classmethod
    def check(cls, draft: Draft) -> None:
        from vidalign.students.checks import check_adapter, written_layers

        super().check(draft)
        student = draft.recipe.student
        adapter, freeze = student.adapter, getattr(student.config, "freeze", [])
        if freeze or (adapter is not None and adapter.targets != "blocks" and Path(student.path).is_dir()):
            _check_parts(draft, cls, freeze)
        else:
            check_adapter(draft, [] if student.init else written_layers(student.path))
        _check_pictures(draft)
        check_chat(draft, "student", student.path, lambda: cls.spec(student))

    @classmethod
    def check_weights(cls, draft: Draft, path: str) -> None:
        from vidalign.students.checks import check_folder

        if Path(path).is_dir():
            check_folder(draft, path, "student.path")
        elif not is_transformers(path):
            super().check_weights(draft, path)

    @classmethod
    def recognises(cls, path: str, spec: dict[str, Any]) -> bool:
        from vidalign.students.hub import is_student_folder

        return "config" in spec or (not spec and is_transformers(path) and not is_student_folder(path))

    @classmethod
    def read_spec(cls, path: str | Path) -> LanguageSpec:
        """Of saved weights, or of a transformers folder or hub name."""
        from vidalign.students.language_checkpoint import read_spec

        return read_spec(str(path))

    @classmethod
    def export(cls, leaving: Leaving, form: str, out: Path, dtype: str) -> Path:
        from vidalign.students.language_export import export

        return export(leaving, form, out, dtype)

    @classmethod
    def sizes(cls, student: StudentChoice, frames: int) -> Sizes:
        return super().sizes(student, 0)

    @classmethod
    def check_samples(cls, spec: LanguageSpec, request: SampleRequest) -> None:
        why = "a language student answers with text"
        request.refuse("frames", "seconds", "then", "stats", "attention", "compile", why=why)

    @classmethod
    def write_samples(
        cls, student: LanguageStudent, request: SampleRequest, features: PromptFeatures | None = None
    ) -> Samples:
        """Prompt and response of every prompt, shown all `images`, in one text file."""
        from vidalign.data.examples import Example
        from vidalign.data.pictures import picture

        try:
            pictures = tuple(picture(regular(path).read_bytes(), Path()) for path in request.images)
        except (OSError, ValueError) as error:
            raise DataError("a picture cannot be read", where="--image", why=str(error)) from error
        examples = [Example(prompt, images=pictures) for prompt in request.prompts]
        texts = student.sample(examples, seed=request.seed)
        request.out.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{prompt}\n-> {text}\n" for prompt, text in zip(request.prompts, texts, strict=True))
        regular(request.out).write_text("".join(lines), encoding="utf-8")
        return Samples([request.out])


def _check_pictures(draft: Draft) -> None:
    """A plain language model takes no pictures."""
    from vidalign.data.source import find_source
    from vidalign.recipe.prompts import sources

    if not _is_blind(draft):
        return
    for key, source in sources(draft).items():
        if find_source(source)[0].brings_pictures:
            draft.refuse(
                "the student cannot see pictures",
                key,
                "it is a causal language model",
                "use a vision-language model, or prompts without pictures",
            )


def check_chat(draft: Draft, section: str, path: str, read: Callable[[], LanguageSpec]) -> None:
    """The chat template of a model whose files are at hand writes conversations by the settings of a section; those of
    the hub are asked for when the run begins. read: its specification."""
    own = getattr(draft.recipe, section).config
    chat, sampling = getattr(own, "chat", None), getattr(own, "sampling", None)
    writes = chat is not None or (section == "student" and bool(path) and Path(path).is_dir())
    if not writes or not draft.sound(section) or (is_hub_name(path) and not Path(path).exists()):
        return
    from vidalign.students.language_checkpoint import chat_of

    try:
        spec = read()
        chat_of(replace(spec, chat=ChatConfig()))
    except UserError:
        return  # reported with the weights
    try:
        chat_of(replace(spec, chat=chat or spec.chat, sampling=sampling or spec.sampling), section).check()
    except UserError as error:
        draft.refuse_as(error, error.problems[0].where)


def _check_parts(draft: Draft, kind: type[Language], freeze: Sequence[str]) -> None:
    """Targets of an adapter, and what is frozen, are parts of the network that the specification describes."""
    from vidalign.students.checks import check_adapter, check_frozen
    from vidalign.students.language_checkpoint import names_of

    student = draft.recipe.student
    unknown = not draft.sound("student") or (is_hub_name(student.path) and not Path(student.path).exists())
    try:
        layers, parameters = ([], []) if unknown else names_of(kind.spec(student))
    except UserError:
        layers, parameters = [], []  # reported with the weights
    check_adapter(draft, layers)
    check_frozen(draft, freeze, parameters)


def _is_blind(draft: Draft) -> bool:
    """Whether the student is known to be a plain language model, by its header, folder or `init`."""
    from vidalign.students.checks import written_config

    student = draft.recipe.student
    config = student.init.get("config") if student.init else written_config(student.path)
    return isinstance(config, dict) and bool(config) and config.get("vision_config") is None
