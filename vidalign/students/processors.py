"""Processors of vision-language models, read for pictures alone where nothing else can be built.

Video processors of transformers need torchvision, pictures do not: there is an image processor on PIL for nearly every
model. A student sees pictures, so a processor is read without its video part where torchvision is missing. The settings
of that part are kept and written again with the student.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vidalign.errors import CheckpointError, first_line

VIDEO = "video_processor"


def load_processor(source: str, config: Any) -> Any:
    """The processor of a folder or hub name; config: of the model, with its `model_type`.

    Raises `OSError` or `ValueError` for a source that has none, and `CheckpointError` where a package is missing.
    """
    from transformers import AutoProcessor

    try:
        try:
            return AutoProcessor.from_pretrained(source)
        except (ImportError, ValueError) as error:
            kind = _kind_with_videos(config) if "torchvision" in str(error).lower() else None
            if kind is None:
                raise
            return _for_pictures(kind, source).from_pretrained(source)
    except ImportError as error:
        raise CheckpointError(
            "the model's processor cannot be built",
            where=source,
            why=first_line(error),
            fix="install the package that it names, in the version that fits your torch",
        ) from error


class VideoSettings:
    """The settings of a video processor that is not built; those that its files leave out are None."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def __getattr__(self, name: str) -> Any:
        if name == "settings" or name.startswith("__"):
            raise AttributeError(name)
        return self.settings.get(name)

    def __call__(self, *videos: Any, **options: Any) -> Any:
        raise CheckpointError(
            "videos cannot be read",
            why="the video processor of the model needs torchvision, which is not installed",
            fix="install the torchvision that fits your torch, or give pictures",
        )


def _kind_with_videos(config: Any) -> Any:
    """The processor class of a model, if it has a video part."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

    name = PROCESSOR_MAPPING_NAMES.get(getattr(config, "model_type", ""))
    kind = processor_class_from_name(name) if name else None
    return kind if kind is not None and VIDEO in kind.get_attributes() else None


def _for_pictures(kind: Any, source: str) -> Any:
    """The same class without its video part, under its name: what it writes names the whole one."""
    place, settings = kind.get_attributes().index(VIDEO), _video_settings(source)

    class Pictures(kind):  # type: ignore[misc]  # transformers is not typed
        video_processor = VideoSettings(settings)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != VIDEO]

        @classmethod
        def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **options: Any) -> Any:
            given = {name: value for name, value in processor_dict.items() if name != VIDEO}
            return super().from_args_and_dict([*args[:place], None, *args[place:]], given, **options)

        def to_dict(self) -> dict[str, Any]:
            return {**super().to_dict(), **({VIDEO: settings} if settings else {})}

    Pictures.__name__ = Pictures.__qualname__ = kind.__name__
    return Pictures


def _video_settings(source: str) -> dict[str, Any]:
    """What the files of a model say of its video part."""
    from transformers.utils import cached_file

    for name, key in (("processor_config.json", VIDEO), ("video_preprocessor_config.json", "")):
        file = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        values = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        values = values.get(key) if key else values
        if values:
            return dict(values)
    return {}
