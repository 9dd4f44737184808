"""A language model behind an OpenAI-compatible server as teacher: the K likeliest tokens at every place of a response.

One request a micro-batch, ``POST URL/completions`` with the token ids of prompts and responses, ``echo``,
``logprobs: K`` and ``return_tokens_as_token_ids`` (vLLM has all of it). The server has the student's tokenizer: ids go
and come. What is beyond its K tokens is one tail, so `opd` and `gkd` compare K + 1 buckets, a lower bound of the whole
divergence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidalign.errors import UserError
from vidalign.ranges import require
from vidalign.requests import post_json

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.recipe.draft import Draft
    from vidalign.students.chat import TokenBatch
    from vidalign.students.language import LanguageStudent

OBJECTIVES = ("opd", "gkd")
"""Those whose loss the K likeliest tokens give."""
RETRIES = 3
"""How often a request is repeated once the server has taught."""
PREFIX = "token_id:"
"""How a server writes a token as its id."""


class EndpointTeacher:
    """Offers ``logits`` of the K likeliest tokens: `top_logprobs`."""

    offers = ("logits",)

    @dataclass
    class Config:
        url: str = ""
        """Address of the server up to its version, such as `http://localhost:8000/v1`."""
        model: str = ""
        """Name of the model on the server."""
        key: str = ""
        """Environment variable that holds the key of the server; empty: none is sent."""
        top_logprobs: int = 20
        """K, the tokens that the server reports at every place."""
        timeout: float = 120.0
        """Seconds after which a request has failed."""

        def __post_init__(self) -> None:
            require(self, "top_logprobs", least=1)
            require(self, "timeout", above=0)

    def __init__(self, config: Config) -> None:
        self.config, self.entries, self.retries = config, 0, 0

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The address is one, and the objective can use K tokens."""
        recipe, config = draft.recipe, draft.settings("teacher", cls.Config)
        if not config.url.startswith(("http://", "https://")):
            why = f"{config.url!r} is no address"
            draft.refuse("the teacher has no server", "teacher.url", why, "give one such as http://localhost:8000/v1")
        for one in recipe.objectives.values() or [recipe.objective]:
            if one.name not in OBJECTIVES and draft.sound("objective"):
                why = f"it reports its likeliest tokens, and {one.name!r} needs more; {' and '.join(OBJECTIVES)} do not"
                draft.refuse(
                    "the teacher 'endpoint' does not fit", "teacher.name", why, "use a teacher of kind language"
                )
            if getattr(one.config, "top_k", None) is not None:
                why = "the support is that of the teacher, teacher.top_logprobs"
                draft.refuse("objective.top_k has no use here", "objective.top_k", why, "delete it")

    @classmethod
    def from_recipe(cls, config: Config, frames: int, spec: Any) -> EndpointTeacher:
        return cls(config)

    def check_student(self, student: LanguageStudent) -> None:
        """Raises `UserError` for a student of pictures or of another temperature than 1, and where the server does not
        answer as it must."""
        if student.chat.processor is not None:
            raise UserError("the teacher 'endpoint' sees no pictures", where="teacher.name", fix="use kind language")
        if student.spec.sampling.temperature not in (0.0, 1.0):
            why = f"a server reports at temperature 1, the student samples at {student.spec.sampling.temperature}"
            raise UserError("the temperatures differ", where="student.sampling.temperature", why=why, fix="use 1.0")
        self.entries = len(student.head_weight)
        self._reported([[student.chat.pad, student.chat.pad]], [1])
        self.retries = RETRIES  # it teaches: what fails from here on is an outage

    def top_logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities ``[M, K]`` at the M response tokens of a batch, row after row."""
        import torch

        rows = [ids[mask].tolist() for ids, mask in zip(batch.ids.cpu(), batch.mask.cpu(), strict=True)]
        places = self._reported(rows, batch.response.sum(1).tolist())
        ids = torch.tensor([[token for token, _ in place] for place in places], device=batch.ids.device)
        return ids, torch.tensor([[logp for _, logp in place] for place in places], device=batch.ids.device)

    def _reported(self, rows: list[list[int]], lengths: list[int]) -> list[list[tuple[int, float]]]:
        """The K likeliest tokens at the last `lengths` places of every row, the likeliest first."""
        count = self.config.top_logprobs
        asked = {"model": self.config.model, "prompt": rows, "echo": True, "logprobs": count, "max_tokens": 1}
        answer = self._post({**asked, "temperature": 0, "return_tokens_as_token_ids": True})
        places = []
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            for row, length, choice in zip(rows, lengths, choices, strict=True):
                for place in choice["logprobs"]["top_logprobs"][len(row) - length : len(row)]:
                    best = sorted(((float(p), _id(token)) for token, p in place.items()), reverse=True)[:count]
                    places.append([(token, logp) for logp, token in best])
        except (KeyError, TypeError, ValueError) as error:
            raise self._failed(f"its answer cannot be read: {type(error).__name__}: {error}") from error
        if len(places) != sum(lengths) or any(len(place) < count for place in places):
            raise self._failed(f"it does not report {count} tokens at every place")
        if any(not 0 <= token < self.entries or not math.isfinite(logp) for place in places for token, logp in place):
            raise self._failed(f"it reports tokens that the student, with {self.entries} entries, has not")
        return places

    def _post(self, body: dict[str, Any]) -> Any:
        url = f"{self.config.url.rstrip('/')}/completions"
        try:
            return post_json(url, body, key=self.config.key, seconds=self.config.timeout, retries=self.retries)
        except (OSError, ValueError) as error:
            outage = "start the server again, and go on with --resume" if self.retries else ""
            raise self._failed(str(error), outage) from error

    def _failed(self, why: str, outage: str = "") -> UserError:
        fix = "use an OpenAI-compatible server that echoes prompts with logprobs as token ids, such as vLLM"
        return UserError(f"the server {self.config.url} cannot teach", where="teacher.url", why=why, fix=outage or fix)


def _id(token: str) -> int:
    """The id in ``token_id:5``; `ValueError` for a token that is written as a text."""
    if not token.startswith(PREFIX):
        raise ValueError(f"{token!r} is no token id")
    return int(token.removeprefix(PREFIX))
