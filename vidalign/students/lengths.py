"""How long prompts may be, and what becomes of longer ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from vidalign.data.examples import Example
from vidalign.data.source import PromptSource
from vidalign.errors import DataError, UserError

if TYPE_CHECKING:
    from vidalign.students.chat import ChatEncoder

STRIDE, TRIES = 1_000_003, 64
"""The prompt of a sample that is left out is that of another sample, so many further on; how often that is tried."""


@dataclass(frozen=True)
class Room:
    """Tokens of a conversation: the model's context, how many the response takes, how many the prompt may take."""

    context: int | None = None
    """Tokens that the model can distinguish by their places; None = any number."""
    response: int = 0
    longest: int | None = None
    """`chat.max_prompt_length`."""
    section: str = "student"

    @property
    def prompt(self) -> int | None:
        """The longest prompt in tokens; None = any."""
        room = self.context
        if room is not None and self.response < room:  # else it is used to score, and what it samples is refused
            room -= self.response
        return min((one for one in (room, self.longest) if one is not None), default=None)

    def check(self) -> None:
        """Raises `UserError` where no prompt fits, or longer ones are asked for than fit."""
        if self.context is None:
            return
        if self.response >= self.context:
            raise UserError(
                "no room is left for a prompt",
                where=f"{self.section}.sampling.max_new_tokens",
                why=f"the model's context is {self.context} tokens, and the response may take {self.response}",
                fix=f"use fewer than {self.context}",
            )
        if (self.longest or 0) + self.response > self.context:
            raise UserError(
                f"max_prompt_length is {self.longest}",
                where=f"{self.section}.chat.max_prompt_length",
                why=f"the model's context is {self.context} tokens, {self.response} of them for the response",
                fix=f"use {self.context - self.response} or less",
            )

    def too_long(self, prompt: str, tokens: int) -> DataError:
        """The refusal of a prompt of so many tokens; prompt: the question, or where it stands."""
        own = self.longest is not None and self.longest == self.prompt
        why = f"{tokens} tokens, and {self.section}.chat.max_prompt_length is {self.longest}"
        if not own:
            less = f" less {self.response} for the response" if self.response else ""
            why = f"{tokens} tokens, and the model's context is {self.context}{less}"
        return DataError(
            "a prompt is too long",
            where=prompt,
            why=why,
            fix="shorten it, or set chat.long_prompts to drop or cut",
        )


def context_of(config: Any) -> int | None:
    """Tokens in the context of a model's configuration; None for models that count no places."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if isinstance(length, int) and length > 0 else None


def latest_part(prompt: str, fits: Callable[[str], bool]) -> str:
    """The longest end of a text that fits, about: by halving, as the number of tokens grows with the letters. Empty
    where none does."""
    least, most = 0, len(prompt)  # letters left out: too few, enough
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if fits(prompt[middle:]) else (middle, most)
    return prompt[most:]


class FittingPrompts(PromptSource):
    """The prompts of a source but for those that are too long; another one takes the place of each."""

    def __init__(self, source: PromptSource, fits: Callable[[Example], bool]) -> None:
        self.source, self.fits = source, fits
        self._left_out: set[str] = set()
        vars(self).update({name: getattr(source, name) for name in ("gives", "brings_pictures", "judges", "version")})

    @classmethod
    def open(cls, argument: str, seed: int, batch: int = 1) -> PromptSource:
        raise AssertionError("it is made of an open source")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, sample: int) -> Example:
        for turn in range(TRIES):
            example: Example = self.source[sample + turn * STRIDE]
            if self.fits(example):
                return example
            if example.prompt not in self._left_out:
                self._left_out.add(example.prompt)
                warnings.warn(
                    f"a prompt is too long and left out, {len(self._left_out)} up to now: {example.prompt[:60]!r}",
                    stacklevel=2,
                )
        raise DataError(
            "the prompts are too long",
            why=f"{TRIES} in a row do not fit, and chat.long_prompts is drop",
            fix="raise chat.max_prompt_length, or choose cut",
        )

    def questions(self) -> Iterator[tuple[str, Example]]:
        return ((place, example) for place, example in self.source.questions() if self.fits(example))

    def first(self, count: int) -> list[Example]:
        return [example for example in self.source.first(count) if self.fits(example)]

    def leave_out(self, places: list[tuple[str, Example]]) -> None:
        """Say at the start how many rows are left out, and the first of them."""
        self._left_out |= {example.prompt for _, example in places}
        warnings.warn(f"{len(places)} prompts are too long and left out, first {places[0][0]}", stacklevel=2)


def fitting(prompts: PromptSource, chat: ChatEncoder, policy: str) -> PromptSource:
    """The training prompts as a model can read them, with and without their privileged text; policy: `long_prompts` of
    its chat. Raises `DataError` with the place of the first row that is too long and not to be dropped."""
    if policy == "cut" or chat.room.prompt is None:
        return prompts

    def either(example: Example) -> int | None:
        return chat.excess(example) or chat.excess(example, example.privileged)

    if policy == "refuse":
        for place, _, tokens in rows_too_long(prompts, either):
            raise chat.room.too_long(place, tokens)
        return prompts
    fits = FittingPrompts(prompts, lambda example: either(example) is None)
    if left_out := [(place, example) for place, example, _ in rows_too_long(prompts, either)]:
        fits.leave_out(left_out)
    return fits


def rows_too_long(
    source: PromptSource, tokens: Callable[[Example], int | None], count: int | None = None
) -> Iterator[tuple[str, Example, int]]:
    """(place, example, tokens) of all rows, or the first `count`, that can be read now and do not fit. tokens: their
    number, None where they fit."""
    for place, example in islice(source.questions(), count):
        if (number := tokens(example)) is not None:
            yield place, example, number
