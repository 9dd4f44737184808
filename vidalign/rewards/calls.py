"""One call of a reward: guarded, in time, on clips that stay as they are, its answer as tensors."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch

from vidalign.data.captions import metadata_of
from vidalign.errors import PluginError
from vidalign.guest import guest, is_foreign

OnTimeout = Literal["stop", "nan"]


class RewardCall:
    """Calls one reward.

    name: its key in the recipe, under which its scores are returned; plugin: what it calls itself, its key by default.
    seconds: how long it may take, 0 for ever; then its clips are NaN or the run stops.
    """

    def __init__(self, name: str, reward: Any, seconds: float, on_timeout: OnTimeout, plugin: str = "") -> None:
        self.name, self.reward, self.seconds, self.on_timeout = name, reward, seconds, on_timeout
        self.plugin = plugin or name
        self.listeners: list[Callable[[int], None]] = []
        """Called with the number of clips of every call."""
        self._overdue: threading.Thread | None = None
        self._informed = _asks_for_metadata(reward)

    def __call__(self, clips: Any, prompts: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Everything that it returns by name, where the clips are, its key first; ``[B]`` under that.

        Scores are float32, or float64 for clips in float64.
        """
        with guest("reward", self.name, self.reward):
            scores = self._score(clips, prompts) if not self.seconds else self._score_in_time(clips, prompts)
        if not isinstance(scores, Mapping):
            raise self._refusal(f"a {type(scores).__name__}", f"a reward returns a dict with {self.plugin!r}")
        out = {str(key): _beside(self._numbers(str(key), value), clips) for key, value in scores.items()}
        values = out.pop(self.plugin, None)
        if values is None or tuple(values.shape) != (len(prompts),):
            what = "nothing" if values is None else f"a tensor of shape {tuple(values.shape)}"
            why = f"a reward returns a number for each of {len(prompts)} clips, NaN for a failed one"
            raise self._refusal(f"{what} under its name", why)
        return {self.name: values, **out}

    def _score(self, clips: Any, prompts: Sequence[Any]) -> Any:
        """What the reward returns; other rewards, and what is shown, must not see what it does to the clips."""
        for listener in self.listeners:
            listener(len(prompts))
        known = {"metadata": [metadata_of(prompt) for prompt in prompts]} if self._informed else {}
        if not is_foreign(self.reward) or not isinstance(clips, torch.Tensor) or clips.is_inference():
            return self.reward.score(clips, prompts, **known)
        if clips.device.type == "cpu":  # a view in numpy is written to unseen
            return self.reward.score(clips.clone(), list(prompts), **known)
        before = clips._version
        scores = self.reward.score(clips, list(prompts), **known)
        if clips._version != before:
            raise PluginError(
                f"the reward {self.name!r} changed the clips that it was given",
                where=type(self.reward).__qualname__,
                why="other rewards judge the same clips",
                fix="change a copy, clips.clone()",
            )
        return scores

    def _score_in_time(self, clips: Any, prompts: Sequence[Any]) -> Any:
        """In a thread of its own, which cannot be ended: a reward that still works on old clips is not called again."""
        if self._overdue is not None and self._overdue.is_alive():
            return self._late(len(prompts))
        result: dict[str, Any] = {}
        on_cuda = isinstance(clips, torch.Tensor) and clips.is_cuda

        def work() -> None:
            try:
                with torch.no_grad(), torch.cuda.device(clips.device) if on_cuda else nullcontext():
                    result["scores"] = self._score(clips, prompts)
            except BaseException as error:
                result["error"] = error

        thread = threading.Thread(target=work, name=f"reward {self.name}", daemon=True)
        thread.start()
        thread.join(self.seconds)
        if thread.is_alive():
            self._overdue = thread
            return self._late(len(prompts))
        if "error" in result:
            raise result["error"]
        return result["scores"]

    def _late(self, count: int) -> dict[str, torch.Tensor]:
        what = f"the reward {self.name!r} takes longer than {self.seconds:g} s"
        if self.on_timeout == "stop":
            raise PluginError(
                what,
                where="trainer.reward_timeout",
                fix="raise it, or go on without its scores with trainer.on_reward_timeout=nan",
            )
        warnings.warn(f"{what}: its clips are not scored", UserWarning, stacklevel=2)
        return {self.plugin: torch.full((count,), torch.nan)}

    def _numbers(self, key: str, value: Any) -> torch.Tensor:
        """Real numbers of any type, in a tensor, an array or a list, as a tensor."""
        numbers = as_numbers(value)
        if numbers is None:
            raise self._refusal(f"{kind_of(value)} under {key!r}", NUMBERS)
        return numbers

    def _refusal(self, what: str, why: str) -> PluginError:
        return PluginError(f"the reward {self.name!r} returned {what}", where=type(self.reward).__qualname__, why=why)


def _asks_for_metadata(reward: Any) -> bool:
    """Whether its `score` has an argument of that name."""
    try:
        return "metadata" in inspect.signature(reward.score).parameters
    except (AttributeError, TypeError, ValueError):  # what has no signature is called as every reward
        return False


def _beside(values: torch.Tensor, clips: Any) -> torch.Tensor:
    """Values on the device of the clips, in float32 or their wider type; texts have neither."""
    if not isinstance(clips, torch.Tensor):
        return values.to(torch.float32)
    return values.to(clips.device, torch.promote_types(clips.dtype, torch.float32))


NUMBERS = "a tensor, an array or a list of real numbers is needed"


def as_numbers(value: Any) -> torch.Tensor | None:
    """Real numbers of any type, in a tensor, an array or a list, as a tensor; None for anything else."""
    if isinstance(value, list | tuple | np.ndarray | np.number | float | int):
        try:
            array = np.asarray([float(v) for v in value] if isinstance(value, list | tuple) else value)
        except (TypeError, ValueError):
            return None
        if array.dtype.kind in "fiub":
            value = torch.from_numpy(array.astype(np.float64))
    if not isinstance(value, torch.Tensor) or value.is_complex():
        return None
    return value.detach()


def kind_of(value: Any) -> str:
    """What `as_numbers` was given, in words."""
    return f"{value.dtype} values" if isinstance(value, torch.Tensor | np.ndarray) else type(value).__name__
