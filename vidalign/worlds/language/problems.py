"""Multi-step reasoning problems: a state, numbered steps listed in a shuffled order, and the exact result.

Families: `chain` (modular arithmetic), `list` (operations on digits), `rewrite` (letters replaced by letters) and
`walk` (a small graph with coloured edges). `word` (the list operations on letters) is in no training split. Difficulty
is the number of steps. The shuffled order is what a plan resolves. A hint without execution gives the steps in order
and no state; a hint with execution gives every state too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

DIGITS = tuple("0123456789")
LETTERS = tuple("abcde")
NODES = tuple("pqrs")
EDGES = ("red", "blue")
MODULUS = 10
ARITHMETIC = ("plus", "minus", "times")
REORDER = ("reverse", "rotate", "swap", "double")
FAMILIES = ("chain", "list", "rewrite", "walk", "word")
LENGTH = 4
"""Entries of a list, letters of a word."""
Words = tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """One problem; all texts are words separated by spaces."""

    family: str
    start: Words
    facts: tuple[Words, ...]
    """Of a walk: every node with the ends of its red and of its blue edge, in the order in which they are listed."""
    steps: tuple[Words, ...]
    """Operations in the order of their execution."""
    listed: tuple[int, ...]
    """Order in which the prompt lists the steps, a permutation of 0 .. steps - 1."""

    @property
    def states(self) -> tuple[Words, ...]:
        """The state after every step."""
        states, state = [], self.start
        for step in self.steps:
            state = apply(step, state, self.facts)
            states.append(state)
        return tuple(states)

    @property
    def prompt(self) -> str:
        facts = "".join(f" {' '.join(fact)} ," for fact in self.facts)
        listed = "".join(f" | {n + 1} : {' '.join(self.steps[n])}" for n in self.listed)
        return f"{self.family} : {' '.join(self.start)}{facts}{listed}"

    @property
    def answer(self) -> str:
        return " ".join(self.states[-1])

    @property
    def response(self) -> str:
        """The worked solution: every step with its result, then the answer."""
        return f"{self._worked()} | = {self.answer}"

    def privileged(self, form: str) -> str:
        """The privileged text of a form: `hints`, `executed`, `summary`, `answer` or `none`."""
        if form == "none":
            return ""
        if form == "answer":
            return f"answer : {self.answer}"
        if form == "executed":
            return f"plan : {self._worked()}"
        if form == "summary":
            kinds = sorted({step[0] for step in self.steps})
            return f"summary : {len(self.steps)} steps with {' '.join(kinds)}"
        assert form == "hints", f"unknown form of privilege {form!r}"
        return "plan : " + " | ".join(f"{n} {' '.join(step)}" for n, step in enumerate(self.steps, 1))

    def bucket(self, count: int) -> int:
        """A number in 0 .. count - 1 that depends on the problem but not on the order in which it is listed."""
        key = repr((self.family, self.start, sorted(self.facts), self.steps)).encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % count

    def _worked(self) -> str:
        pairs = zip(self.steps, self.states, strict=True)
        return " | ".join(f"{n} {' '.join(step)} > {' '.join(state)}" for n, (step, state) in enumerate(pairs, 1))


def apply(step: Words, state: Words, facts: tuple[Words, ...]) -> Words:
    """The state after one step."""
    name = step[0]
    if name in ARITHMETIC:
        a, b = int(state[0]), int(step[1])
        return (str({"plus": a + b, "minus": a - b, "times": a * b}[name] % MODULUS),)
    if name == "change":
        return tuple(step[2] if letter == step[1] else letter for letter in state)
    if name in EDGES:
        return next((row[1 + EDGES.index(name)],) for row in facts if row[0] == state[0])
    if name == "reverse":
        return state[::-1]
    if name == "rotate":
        return state[1:] + state[:1]
    if name == "swap":
        return (state[1], state[0], *state[2:])
    assert name == "double", f"unknown step {name!r}"
    return (state[0], state[0], *state[1:-1])


def draw(family: str, steps: int, g: torch.Generator) -> Problem:
    """A problem of a family with so many steps; a pure function of the generator."""
    start, facts = _start(family, g)
    state, chosen = start, []
    for _ in range(steps):
        step = _step(family, state, g)
        chosen.append(step)
        state = apply(step, state, facts)
    listed = tuple(torch.randperm(steps, generator=g).tolist())
    return Problem(family, start, facts, tuple(chosen), listed)


def _start(family: str, g: torch.Generator) -> tuple[Words, tuple[Words, ...]]:
    if family == "walk":
        ends = [tuple(_pick(tuple(n for n in NODES if n != node), g) for _ in EDGES) for node in NODES]
        listed = torch.randperm(len(NODES), generator=g).tolist()
        return (_pick(NODES, g),), tuple((NODES[i], *ends[i]) for i in listed)
    symbols = DIGITS if family in ("chain", "list") else LETTERS
    return tuple(_pick(symbols, g) for _ in range(1 if family == "chain" else LENGTH)), ()


def _step(family: str, state: Words, g: torch.Generator) -> Words:
    if family == "chain":
        name = _pick(ARITHMETIC, g)
        return name, _pick(DIGITS[2:] if name == "times" else DIGITS[1:], g)
    if family == "rewrite":
        old = _pick(state, g)
        return "change", old, _pick(tuple(x for x in LETTERS if x != old), g)
    return (_pick(EDGES if family == "walk" else REORDER, g),)


def _pick(options: Words, g: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (), generator=g))]
