"""Language students on disk: one safetensors file with the spec in its metadata, or a transformers model by name."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign.engine.layers import linear_layers
from vidalign.errors import CheckpointError, UserError, first_line
from vidalign.quiet import no_bars
from vidalign.students.chat import ChatEncoder
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import BESIDE, LanguageSpec, is_transformers
from vidalign.students.lengths import Room, context_of
from vidalign.students.video.checkpoint import check_layers, check_spec
from vidalign.students.weights import check_tensors, header, load_strict, read, reading_spec, resolve, spec_in, write
from vidalign.students.weights import spec_of as weights_spec

if TYPE_CHECKING:
    from torch import Tensor, nn


def new_model(config: dict[str, Any]) -> Any:
    """A randomly initialised model of a configuration with `model_type`; `UserError` when it is not one."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    with _building():
        built = new_config(config)
        kind = AutoModelForImageTextToText if sees_pictures(built) else AutoModelForCausalLM
        return kind.from_config(built)


def new_config(config: dict[str, Any]) -> Any:
    """The configuration of transformers with these values; `UserError` when there is none."""
    from transformers import AutoConfig

    values = dict(config)
    with _building():
        return AutoConfig.for_model(values.pop("model_type"), **values)


@contextmanager
def _building() -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            "the student's model cannot be built",
            where="student.init.config",
            why=str(error),
            fix="give a transformers configuration with its model_type",
        ) from error


def sees_pictures(config: Any) -> bool:
    """Whether a configuration is that of a vision-language model."""
    return getattr(config, "vision_config", None) is not None


def tokenizer_and_processor(name: str, config: Any) -> tuple[Any, Any]:
    """Tokenizer of a folder, hub name or shipped name, and processor of a vision-language model (else None)."""
    from transformers import AutoTokenizer

    from vidalign.students.processors import load_processor

    shipped = Path(str(resources.files("vidalign") / "weights")) / name
    source = str(shipped) if (shipped / "tokenizer.json").is_file() else name
    try:
        if sees_pictures(config):
            processor = load_processor(source, config)
            if not hasattr(processor, "tokenizer"):  # transformers hands over the tokenizer where there is no processor
                raise ValueError("a model that sees pictures needs a processor, and there is only a tokenizer")
            return processor.tokenizer, processor
        return AutoTokenizer.from_pretrained(source), None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "the tokenizer cannot be read",
            where=name,
            why=first_line(error),
            fix="give a folder or a hub name that has one",
        ) from error


def names_of(spec: LanguageSpec) -> tuple[list[str], list[str]]:
    """Linear layers and parameters of a student of this specification; no weights are read or made."""
    import torch

    with torch.device("meta"):
        model = new_model(spec.config)
    inside = LanguageStudent.inside
    names = [f"{inside}.{name}" for name, _ in model.named_parameters(remove_duplicate=False)]
    return [f"{inside}.{name}" for name in linear_layers(model)], names


def chat_of(spec: LanguageSpec, section: str = "student") -> ChatEncoder:
    """How a specification writes conversations; no weights are read. section: of the recipe that says so."""
    config = new_config(spec.config)
    response = spec.sampling.max_new_tokens if section == "student" else 0
    room = Room(context_of(config), response, spec.chat.max_prompt_length, section)
    tokenizer, processor = tokenizer_and_processor(spec.tokenizer, config)
    return ChatEncoder(tokenizer, spec.chat, processor, room)


WEIGHTS = "model.safetensors"
"""How transformers calls them, in a folder that holds all else of a model too."""


def save(student: LanguageStudent, path: Path, metadata: dict[str, str]) -> None:
    """Write all weights once: a tied head is the embedding. See `LanguageStudent.save`."""
    state = student.model.state_dict()
    tensors = {keys[0]: state[keys[0]].detach().cpu().contiguous().clone() for keys in aliases(student.model)}
    dtype = str(student.head_weight.dtype).removeprefix("torch.")
    spec = student.spec
    if dtype != spec.config.get("dtype", "float32"):
        spec = replace(spec, config=spec.config | {"dtype": dtype})
    if path.name == WEIGHTS:
        spec = replace(spec, tokenizer=BESIDE)
        _write_beside(student, path.parent, dtype)
    write(tensors, spec.to_dict(), path, {"format": "pt", **metadata})


def _write_beside(student: LanguageStudent, folder: Path, dtype: str) -> None:
    """What transformers reads beside the weights."""
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(student.model.config)
    config.dtype = dtype
    config.architectures = [type(student.model).__name__]
    config.save_pretrained(folder)
    student.chat.save(folder)
    ends = GenerationConfig(eos_token_id=student.stop_ids, pad_token_id=student.chat.pad)
    ends.save_pretrained(folder)


def untied(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the same model whose head is not its embedding."""
    text = {"text_config": untied(config["text_config"])} if isinstance(config.get("text_config"), dict) else {}
    return config | text | {"tie_word_embeddings": False}


def load(path: str) -> LanguageStudent:
    """A file or shipped name is in the dtype of its configuration (fp32 without one). A transformers folder or hub name
    is in the dtype in which it is stored.
    """
    import torch

    if own := own_weights(path):
        path = str(own)
    elif is_transformers(path):
        return load_transformers(path)
    file = resolve(path)
    tensors, metadata = read(file)
    spec = spec_in(metadata, str(file))
    check_spec(spec, str(file), "config", ("model_type",))
    with reading_spec(str(file)):
        made = _placed(LanguageSpec.from_dict(spec), file)
        check_layers(made.config, tensors)
        with torch.device("meta"):  # takes no memory
            shapes = new_model(made.config).state_dict()
    check_tensors({key: value for key, value in shapes.items() if key in tensors}, tensors, str(file))
    student = LanguageStudent.from_spec(made)
    whole = {key: tensors[keys[0]] for keys in aliases(student.model) if keys[0] in tensors for key in keys}
    load_strict(student.model, {**tensors, **whole}, str(file))
    return student


def own_weights(path: str) -> Path | None:
    """The weights in a folder that a run has written, with chat and sampling in their header; None for others."""
    file = Path(path) / WEIGHTS
    return file if file.is_file() and "spec" in header(file).metadata else None


def _placed(spec: LanguageSpec, file: Path) -> LanguageSpec:
    """The specification in a file's header; a tokenizer beside the file is named by its folder."""
    return replace(spec, tokenizer=str(file.parent)) if spec.tokenizer == BESIDE else spec


def read_spec(path: str) -> LanguageSpec:
    """The specification of a saved student, or of a transformers folder or hub name; no weights are read."""
    own = own_weights(path)
    if own is None and is_transformers(path):
        return spec_of(path)
    file = own or resolve(path)
    with reading_spec(str(file)):
        return _placed(LanguageSpec.from_dict(weights_spec(file)), file)


def spec_of(name: str) -> LanguageSpec:
    """The specification of a transformers folder or hub name; its weights are not read. Raises `CheckpointError`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from error
    return LanguageSpec({"model_type": config.model_type, **config.to_diff_dict()}, name)


def _unloadable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        "the model cannot be loaded",
        where=name,
        why=first_line(error),
        fix="give a folder, a hub name, or weights saved by vidalign",
    )


def load_transformers(name: str) -> LanguageStudent:
    """A pretrained causal language model or vision-language model with its own tokenizer and chat template."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(name)
        kind = AutoModelForImageTextToText if sees_pictures(config) else AutoModelForCausalLM
        with no_bars("transformers"):
            model = kind.from_pretrained(name, dtype="auto")
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from error
    values = {"model_type": config.model_type, **config.to_diff_dict()}
    tokenizer, processor = tokenizer_and_processor(name, config)
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    stop = tokenizer.convert_ids_to_tokens([ends] if isinstance(ends, int) else ends or [])
    return LanguageStudent(LanguageSpec(values, name, stop), model, tokenizer, processor)


def aliases(model: nn.Module) -> Iterable[list[str]]:
    """State-dict keys that share one tensor, in order; most stand alone."""
    groups: dict[int, list[str]] = {}
    for key, value in model.state_dict().items():
        groups.setdefault(_storage(value), []).append(key)
    return groups.values()


def _storage(value: Tensor) -> int:
    return value.data_ptr() if value.numel() else id(value)
