"""The problems of the language worlds as prompt sources: ``tokens:SPLIT`` and ``pictures:SPLIT``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from vidalign.data.examples import Example
from vidalign.data.source import PromptSource
from vidalign.worlds.golden import world_hash
from vidalign.worlds.language import pictures, tokens
from vidalign.worlds.language.grader import AfterEquals

GRADER = AfterEquals()


class Tokens(PromptSource):
    """Reasoning problems in words; endless."""

    argument = "split"
    gives = "examples"
    judges: ClassVar[dict[str, dict[str, Any]]] = {"exact_match": {}}
    version = world_hash()
    problems: ClassVar[Any] = tokens

    @dataclass
    class Config:
        split: str = "train"
        """Which problems: see docs/language.md."""
        privilege: Literal["hints", "executed", "summary", "answer", "none", "mixed"] = "hints"
        """Privileged text: steps in order without or with their results, a summary, the answer, nothing, or these in
        turn."""

    def __init__(self, split: str, seed: int, privilege: str) -> None:
        self.split, self.seed, self.privilege = split, seed, privilege

    @classmethod
    def listed(cls, argument: str, **settings: Any) -> None:
        cls.problems.check_split(argument)

    @classmethod
    def open(cls, argument: str, seed: int, batch: int = 1, privilege: str = "hints") -> PromptSource:
        cls.listed(argument)
        return cls(argument, seed, privilege)

    def __getitem__(self, sample: int) -> Example:
        example: Example = self.problems.example(self.split, self.seed, sample, self.privilege)
        return replace(example, grader=GRADER)


class Pictures(Tokens):
    """Questions about pictures; endless."""

    brings_pictures = True
    problems: ClassVar[Any] = pictures
