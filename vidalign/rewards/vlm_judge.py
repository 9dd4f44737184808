"""A vision-language model as judge: frames of a clip and a question about them, its answer as a number.

The model is any image-text-to-text model of transformers, or one behind an OpenAI-compatible server (`url`). Its answer
becomes a number in one of two ways. With `choices`, such as ``{yes: 1, no: 0}``, the score is the mean of their values
by the probabilities of the first token of each [VQAScore, Lin et al. 2024, arXiv 2404.01291]: without steps, so that a
group of clips has an order. Without, the model writes, and the first group of `pattern` is read as a number; an answer
without one is NaN. For a parser of your own derive from `VLMJudge` and give `parse`.
"""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from vidalign.deferred import without_gradient
from vidalign.errors import UserError
from vidalign.ranges import require
from vidalign.requests import post_json
from vidalign.rewards.framewise import evenly_spaced
from vidalign.rewards.pretrained import LOCAL, Checkpoint, Resting, load_checked, settings_of, unloadable
from vidalign.tracking.clips import to_frames

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft

QUESTION = (
    'These are frames of a video in order, from first to last. Does the video show "{prompt}", with natural motion? '
    "Answer yes or no."
)


class VLMJudge:
    """What a vision-language model says of the frames of a clip."""

    name: ClassVar[str] = "vlm_judge"
    judges: ClassVar[str] = "clips"
    local_settings: ClassVar[tuple[str, ...]] = (*LOCAL, "url", "key", "request_timeout", "on_failure")

    @dataclass
    class Config(Checkpoint):
        model: str = ""
        """A folder or hub name of an image-text-to-text model; with `url` the name of the model on the server."""
        url: str = ""
        """Address of an OpenAI-compatible server up to its version, such as `http://localhost:8000/v1`."""
        key: str = ""
        """Environment variable that holds the key of the server; empty: none is sent."""
        dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
        """Type of the weights and of the computation."""
        question: str = QUESTION
        """What it is asked, with `{prompt}` where the prompt of the clip stands."""
        choices: dict[str, float] = field(default_factory=lambda: {"yes": 1.0, "no": 0.0})
        """Answers and their values, separated by their first tokens; {} lets it write, read by `pattern`."""
        pattern: str = r"(-?\d+(?:\.\d+)?)"
        """Regular expression whose first group is the number; of several matches the last."""
        frames: int = 8
        """Frames shown of every clip, evenly spaced from the first to the last; 0 shows all."""
        side: int = 0
        """Most pixels of the longer side of a frame, larger ones are shrunk; 0 leaves them to the model."""
        max_new_tokens: int = 64
        """Length of an answer that is written."""
        request_timeout: float = 120.0
        """Seconds after which a request has failed."""
        on_failure: Literal["nan", "stop"] = "nan"
        """What a failed request does: its clip is not scored, with a warning, or the run stops."""

        def __post_init__(self) -> None:
            require(self, "frames", "side", least=0)
            require(self, "max_new_tokens", least=1)
            require(self, "request_timeout", above=0)
            if "{prompt}" not in self.question:
                raise ValueError("question must hold {prompt}, where the prompt of the clip stands")
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"pattern is no regular expression: {error}") from error
            if groups < 1:
                raise ValueError("pattern must have a group, (...), around the number")
            if len(self.choices) == 1:
                raise ValueError("choices must be two or more, or none")

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        if not self.config.model:
            raise UserError("the judge has no model", where=f"rewards.{self.name}.model", fix="name a folder or hub id")
        self._loaded: tuple[Resting, Any] | None = None

    @property
    def waits(self) -> bool:
        """Whether it waits for a server, and computes nothing here."""
        return bool(self.config.url)

    @classmethod
    def check(cls, draft: Draft) -> None:
        """There is a model, and the address of its server is one."""
        for key, config in settings_of(draft, cls.name):
            if not config.model:
                draft.refuse("the judge has no model", f"{key}.model", fix="name a folder or hub id")
            if config.url and not config.url.startswith(("http://", "https://")):
                why, fix = f"{config.url!r} is no address", "give one such as http://localhost:8000/v1"
                draft.refuse("the judge has no server", f"{key}.url", why, fix)

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` under its name for clips ``[B, F, 3, H, W]`` in [0, 1]; NaN where the answer cannot be read, and of
        clips with a value that is not finite."""
        values = torch.full((len(clips),), torch.nan)
        chosen = evenly_spaced(clips.shape[1], self.config.frames)
        for n, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
            if clip.isfinite().all():
                frames = [_shrunk(frame, self.config.side) for frame in to_frames(clip[chosen])]
                values[n] = self._ask(frames, self.config.question.replace("{prompt}", prompt))
        return {self.name: values}

    def parse(self, answer: str) -> float:
        """The number in a written answer; NaN where there is none."""
        found = re.findall(self.config.pattern, answer)
        try:
            return float(found[-1] if isinstance(found[-1], str) else found[-1][0])
        except (IndexError, ValueError):
            return math.nan

    def _ask(self, frames: list[Any], question: str) -> float:
        if self.config.url:
            return self._remote(frames, question)
        judge, processor = self._load()
        with judge.resident():
            return self._local(judge, processor, frames, question)

    # --- in this process ---

    def _local(self, judge: Resting, processor: Any, frames: list[Any], question: str) -> float:
        content = [*({"type": "image"} for _ in frames), {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=[frames], return_tensors="pt").to(judge.device)
        inputs = {k: v.to(judge.network.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        if not self.config.choices:
            options = {"max_new_tokens": self.config.max_new_tokens, "do_sample": False}
            out = judge.network.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
            return self.parse(processor.batch_decode(out, skip_special_tokens=True)[0])
        logp = judge.network(**inputs).logits[0, -1].float().log_softmax(-1)
        tokens = {
            name: processor.tokenizer(name, add_special_tokens=False).input_ids[0] for name in self.config.choices
        }
        if len(set(tokens.values())) < len(tokens):
            why = "two of them begin with the same token"
            raise UserError("the choices cannot be separated", where=self._key("choices"), why=why)
        return self._expected({name: float(logp[token]) for name, token in tokens.items()})

    def _load(self) -> tuple[Resting, Any]:
        if self._loaded is None:
            from transformers import AutoModelForImageTextToText

            from vidalign.students.processors import load_processor

            name = self.config.model
            model = load_checked(AutoModelForImageTextToText, name, self.config, self._key("model"))
            try:
                processor = load_processor(name, model.config)
            except (OSError, ValueError, KeyError) as error:
                raise unloadable(name, self._key("model"), error) from error
            self._loaded = Resting(model, self.config), processor
        return self._loaded

    # --- behind a server ---

    def _remote(self, frames: list[Any], question: str) -> float:
        config = self.config
        shown = [{"type": "image_url", "image_url": {"url": _data_url(frame)}} for frame in frames]
        turn = {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
        asked: dict[str, Any] = {"model": config.model, "messages": [turn], "temperature": 0}
        if config.choices:
            asked |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        else:
            asked["max_tokens"] = config.max_new_tokens
        url = f"{config.url.rstrip('/')}/chat/completions"
        try:
            choice = post_json(url, asked, key=config.key, seconds=config.request_timeout)["choices"][0]
            if not config.choices:
                return self.parse(choice["message"]["content"])
            top = choice["logprobs"]["content"][0]["top_logprobs"]
            return self._expected(_of_choices(config.choices, top))
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            what, why = f"the server {config.url} cannot judge", f"{type(error).__name__}: {error}"
            fix = "use an OpenAI-compatible server of a model that sees pictures; with choices it reports logprobs"
            if config.on_failure == "stop":
                raise UserError(what, where=self._key("url"), why=why, fix=fix) from error
            warnings.warn(f"{what}: its clip is not scored - {why}", UserWarning, stacklevel=2)
            return math.nan

    def _expected(self, logps: Mapping[str, float]) -> float:
        """Mean of the values of the choices by their probabilities; NaN where none is among the likeliest tokens."""
        if not logps:
            return math.nan
        highest = max(logps.values())
        weights = {name: math.exp(logp - highest) for name, logp in logps.items()}
        return sum(weights[name] * self.config.choices[name] for name in weights) / sum(weights.values())

    def _key(self, setting: str) -> str:
        return f"{self.name}.{setting}"


def _of_choices(choices: Mapping[str, float], top: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Log-probability of every choice among the reported tokens, which may have a space before them and capitals."""
    found: dict[str, float] = {}
    for token in top:
        for name in choices:
            if token["token"].strip().lower() == name.strip().lower():
                found[name] = max(float(token["logprob"]), found.get(name, -math.inf))
    return found


def _shrunk(frame: Any, side: int) -> Any:
    """A frame ``[H, W, 3]`` of bytes as a picture of PIL, its longer side at most so many pixels; 0 = as it is."""
    from PIL import Image

    picture = Image.fromarray(frame)
    if side:
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    return picture


def _data_url(frame: Any) -> str:
    buffer = io.BytesIO()
    frame.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
