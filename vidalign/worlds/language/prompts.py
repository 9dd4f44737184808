"""The problems of the language worlds as prompt sources: ``tokens``, ``rules``, ``pictures``, ``signs``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from vidalign.data.examples import Example
from vidalign.data.source import PromptSource
from vidalign.ranges import require
from vidalign.worlds.golden import world_hash
from vidalign.worlds.language import pictures, rules, signs, tokens
from vidalign.worlds.language.grader import AfterEquals

GRADER = AfterEquals()


Privilege = Literal["hints", "executed", "summary", "answer", "none", "mixed"]


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
        privilege: Privilege = "hints"
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


class Rules(PromptSource):
    """Choosing problems of the families F, G, G_plan and H, see `vidalign.worlds.language.rules`; endless."""

    argument = "split"
    gives = "examples"
    judges: ClassVar[dict[str, dict[str, Any]]] = {"exact_match": {}}
    version = "rules 1"

    @dataclass
    class Config:
        split: str = "train"
        """`train`, `held_out` or `deeper` (more steps than in training)."""
        privilege: Privilege = "hints"
        """Privileged text: operations without or with their results, a summary, the answer, nothing, or these in
        turn."""
        family: Literal["F", "G", "G_plan", "H"] = "F"
        """What the teacher's written answers leave out, and what the student's training lacks."""
        author: Literal["anyone", "student", "teacher"] = "anyone"
        """Whose pre-training the problems are for; `anyone`: all problems, every operation named."""
        privileged_share: float = 1.0
        """Share of the problems that have a privileged text, in [0, 1]."""

        def __post_init__(self) -> None:
            require(self, "privileged_share", least=0, most=1)

    def __init__(self, split: str, seed: int, privilege: str, style: rules.Style) -> None:
        self.split, self.seed, self.privilege, self.style = split, seed, privilege, style

    @classmethod
    def listed(cls, argument: str, **settings: Any) -> None:
        rules.check_split(argument)

    @classmethod
    def open(cls, argument: str, seed: int, batch: int = 1, privilege: str = "hints", **style: Any) -> Rules:
        cls.listed(argument)
        return cls(argument, seed, privilege, rules.Style(**style))

    @classmethod
    def family(cls, prompt: Any) -> str:
        """The depth: all problems of a source are of one family."""
        return f"{prompt.steps} steps"

    def __getitem__(self, sample: int) -> Example:
        example = rules.example(self.split, self.seed, sample, self.privilege, self.style)
        return replace(example, grader=GRADER)


class Signs(PromptSource):
    """Questions about signs of 4 x 4 pixels, see `vidalign.worlds.language.signs`; endless."""

    argument = "split"
    gives = "examples"
    brings_pictures = True
    judges: ClassVar[dict[str, dict[str, Any]]] = {"exact_match": {}}
    version = "signs 2"

    @dataclass
    class Config:
        split: str = "train"
        """`train`, `held_out` or `crowded` (six signs instead of three or four)."""
        privilege: Literal["hints", "answer", "none"] = "hints"
        """Privileged text: boxes of the signs in question, the answer, or nothing."""
        privileged_share: float = 1.0
        """Share of the questions that have a privileged text, in [0, 1]."""
        naming_share: float = 0.0
        """Share of questions that ask for all signs, `what is where ?`, without privileged text, in [0, 1]; for
        pre-training."""

        def __post_init__(self) -> None:
            require(self, "privileged_share", "naming_share", least=0, most=1)

    def __init__(self, split: str, seed: int, privilege: str, privileged_share: float, naming_share: float) -> None:
        self.split, self.seed, self.privilege = split, seed, privilege
        self.privileged_share, self.naming_share = privileged_share, naming_share

    @classmethod
    def listed(cls, argument: str, **settings: Any) -> None:
        signs.check_split(argument)

    @classmethod
    def open(
        cls,
        argument: str,
        seed: int,
        batch: int = 1,
        privilege: str = "hints",
        privileged_share: float = 1.0,
        naming_share: float = 0.0,
    ) -> Signs:
        cls.listed(argument)
        return cls(argument, seed, privilege, privileged_share, naming_share)

    def __getitem__(self, sample: int) -> Example:
        example = signs.example(self.split, self.seed, sample, self.privilege, self.privileged_share, self.naming_share)
        return replace(example, grader=GRADER)
