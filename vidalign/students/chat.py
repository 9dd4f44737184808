"""From an `Example` to token ids: chat template, privileged user turn, left padding.

The prompt ends with the assistant marker. A privileged text stands in the user turn, hence before that marker, and
never touches the ids of the response. `compose` puts the very ids that were sampled behind any other prompt, in the
last columns of the batch. So column j of the response is the same token under every prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.data.examples import Example
from vidalign.errors import DataError, UserError
from vidalign.students.control import TypedTokens, control_tokens
from vidalign.students.language_config import ChatConfig
from vidalign.students.lengths import Room, latest_part
from vidalign.students.turns import SAID, Turns, template_text

if TYPE_CHECKING:
    from torch import Tensor

PER_TOKEN = "token_type_ids"
"""How the names of processor outputs with an entry a token end."""


@dataclass
class TokenBatch:
    """N conversations: prompts padded on the left, responses in the last R columns, padded on the right.

    ids: ``[N, P + R]`` int64. mask: ``[N, P + R]`` bool, false on padding. response: ``[N, R]`` bool, true on sampled
    tokens, the stop token included. inputs: the processor's picture tensors, for all N together. logprobs: ``[N, R]``
    of the sampled tokens when they were sampled, 0 on padding; None for a batch that was only composed.
    """

    ids: Tensor
    mask: Tensor
    response: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)
    logprobs: Tensor | None = None

    @property
    def prompt_length(self) -> int:
        """P, the columns before the response."""
        return self.ids.shape[1] - self.response.shape[1]

    @property
    def response_ids(self) -> Tensor:
        """``[N, R]``; the padding token where `response` is false."""
        return self.ids[:, self.prompt_length :]

    def predicting(self, per_token: Tensor) -> Tensor:
        """Of ``[N, P + R, ...]`` the R entries that predict the response: those one column before it."""
        return per_token[:, self.prompt_length - 1 : self.ids.shape[1] - 1]


class ChatEncoder:
    """Chat template and tokenizer of one model; `processor` is the multimodal one of a vision-language model."""

    def __init__(self, tokenizer: Any, config: ChatConfig, processor: Any = None, room: Room | None = None) -> None:
        self.tokenizer, self.processor = tokenizer, processor
        self.room = room or Room(longest=config.max_prompt_length)
        section = f"{self.room.section}.chat"
        self.config = replace(config, template=template_text(config.template, section))
        self.turns = Turns(processor or tokenizer, self.config.template, config.options, section)
        own = tokenizer.pad_token_id
        own = tokenizer.eos_token_id if own is None else own
        self.pad = int(self.end or 0) if own is None else int(own)

    def check(self) -> None:
        """Raises `UserError` for a template that is missing or cannot write the conversations of these settings, and
        where no prompt fits."""
        self.room.check()
        *system, user = self.messages(Example("?"))
        self.turns.check(system, user, self.config.system)

    def save(self, folder: Path) -> None:
        """Tokenizer, processor and chat template, as transformers reads them."""
        source = copy.copy(self.processor or self.tokenizer)
        if self.config.template:
            source.chat_template = self.config.template
        source.save_pretrained(folder)

    def messages(
        self, example: Example, privileged: str = "", written: Callable[[str], str] = str
    ) -> list[dict[str, Any]]:
        """The conversation up to the assistant's turn; an empty `privileged` leaves the plain prompt.

        A system turn of the example itself stands instead of the configured one. written: what is made of the text of
        every turn.
        """
        text = self.config.privileged.format(prompt=example.prompt, privileged=privileged) if privileged else None
        content = self._content(written(example.prompt if text is None else text), len(example.images))
        before = list(example.before)
        if self.config.system and all(role != "system" for role, _ in before):
            before = [("system", self.config.system), *before]
        turns = [{"role": role, "content": self._content(written(text))} for role, text in before]
        return [*turns, {"role": "user", "content": content}]

    def text(self, example: Example, privileged: str = "") -> str:
        """The conversation as the model's template writes it, up to and with the assistant marker."""
        return self.turns.text(self.messages(example, privileged))

    def prompts(self, examples: Sequence[Example], privileged: Sequence[str] | None = None) -> TokenBatch:
        """Prompts alone (R = 0), left padded to the longest.

        privileged: one text an example, or None for bare prompts. Raises `DataError` for pictures that the model
        cannot see, and for a prompt that is too long, unless it is to be cut.
        """
        hints = privileged if privileged is not None else [""] * len(examples)
        rows = [self._fitted(example, hint) for example, hint in zip(examples, hints, strict=True)]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for n, (row, _) in enumerate(rows):
            ids[n, length - len(row) :] = row
            mask[n, length - len(row) :] = True
        inputs = self._stack([extra for _, extra in rows], length)
        return TokenBatch(ids, mask, torch.zeros(len(rows), 0, dtype=torch.bool), inputs)

    def compose(
        self,
        examples: Sequence[Example],
        response_ids: Tensor,
        response: Tensor,
        privileged: Sequence[str] | None = None,
    ) -> TokenBatch:
        """The same response tokens ``[N, R]`` (with their mask) behind other prompts; arguments as for `prompts`."""
        before = self.prompts(examples, privileged)
        context, device = self.room.context, response_ids.device
        lengths = before.mask.sum(1) + response.sum(1).to(before.mask.device)
        for example, length in zip(examples, lengths.tolist(), strict=True):
            if context is not None and length > context:
                raise replace(self.room, response=0, longest=None).too_long(
                    f"{example.prompt[:60]!r} with its response", length
                )
        ids = torch.cat([before.ids.to(device), response_ids.masked_fill(~response, self.pad)], 1)
        mask = torch.cat([before.mask.to(device), response], 1)
        return TokenBatch(ids, mask, response, lengthen(before.inputs, ids.shape))

    def responses(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids ``[N, R]`` and mask of written responses, right padded. Each is closed as the template closes the turn of
        an assistant, up to and with the token `end`."""
        rows = [[*self._response(text), self.end] for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows])
        return ids, torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]

    def decode(self, response_ids: Tensor, response: Tensor) -> list[str]:
        """Text of every response, without special tokens."""
        rows = [ids[keep].tolist() for ids, keep in zip(response_ids.cpu(), response.cpu(), strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def _content(self, text: str, pictures: int = 0) -> Any:
        """The content of a turn: a text, or parts for a processor."""
        if self.processor is None:
            return text
        return [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}]

    @cached_property
    def end(self) -> int | None:
        """The token that ends a turn: the first added token that the template writes behind an assistant's text, the
        tokenizer's end-of-text token where there is none."""
        return self._ending[1]

    @cached_property
    def closing(self) -> str:
        """What the template writes between that text and that token."""
        return self._ending[0]

    @cached_property
    def _ending(self) -> tuple[str, int | None]:
        after = self._answered.rpartition(SAID)[2]
        added = {str(token): number for number, token in self.tokenizer.added_tokens_decoder.items()}
        places = {token: place for token in added if token.strip() and (place := after.find(token)) >= 0}
        if not places:
            end = self.tokenizer.eos_token_id
            return "", None if end is None else int(end)
        first = min(places, key=lambda token: (places[token], -len(token)))
        return after[: places[first]], added[first]

    @cached_property
    def _answered(self) -> str:
        """A question and its answer, as the template writes them."""
        return self.turns.answered({"role": "user", "content": self._content("?")}, self._content(SAID))

    @cached_property
    def _placeholders(self) -> set[str]:
        """Tokens that stand for pictures and the like."""
        names = ("image_token", "video_token", "audio_token")
        return {token for name in names if (token := getattr(self.processor, name, None))}

    @cached_property
    def _typed(self) -> TypedTokens:
        """Reads prompts in which somebody typed a control token."""
        begun = self.turns.text([{"role": "user", "content": self._content("?")}])
        return TypedTokens(self.tokenizer, control_tokens(self.tokenizer, begun + self._answered, self._placeholders))

    @cached_property
    def _typed_in_responses(self) -> TypedTokens:
        """Reads written responses: they may hold control tokens, but none that ends them or stands for a picture."""
        ends = {self.tokenizer.convert_ids_to_tokens(self.end), self.tokenizer.eos_token}
        added = {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        return TypedTokens(self.tokenizer, (ends | self._placeholders) & added)

    def _response(self, text: str) -> list[int]:
        """The ids of a written response, up to the token that ends it."""
        tokenizer = self.tokenizer
        if self.config.control_tokens == "as_text":
            end = tokenizer.convert_ids_to_tokens(self.end)
            text = text.rstrip().removesuffix(end) if text.rstrip().endswith(end) else text
            if self._typed_in_responses.typed_in(text):
                tokenizer, text = self._typed_in_responses, self._typed_in_responses.marked(text)
        return list(tokenizer(text + self.closing, add_special_tokens=False).input_ids)

    def excess(self, example: Example, privileged: str = "") -> int | None:
        """The tokens of a prompt that is too long; None for one that fits."""
        room, texts = self.room.prompt, (example.prompt, privileged, self._empty)
        alone = not example.images and not example.before
        if room is None or (alone and len("".join(texts).encode()) <= room):
            return None  # no token is shorter than a byte
        length = len(self._encode(example, privileged)[0])
        return length if length > room else None

    @cached_property
    def _empty(self) -> str:
        """The conversation without a question."""
        return self.text(Example("?", privileged="?"), "?")

    def _fitted(self, example: Example, privileged: str) -> tuple[Tensor, dict[str, Tensor]]:
        """As `_encode`, of a prompt that is no longer than it may be."""
        ids, extra = self._encode(example, privileged)
        if self.room.prompt is None or len(ids) <= self.room.prompt:
            return ids, extra
        refusal = self.room.too_long(repr(example.prompt[:60]), len(ids))
        if self.config.long_prompts != "cut":
            raise refusal
        kept = latest_part(example.prompt, lambda text: self.excess(replace(example, prompt=text), privileged) is None)
        if not kept:
            raise refusal
        return self._encode(replace(example, prompt=kept), privileged)

    def _encode(self, example: Example, privileged: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Ids of a prompt, and what the processor makes of its pictures."""
        turns, tokenizer, processor = self.messages(example, privileged), self.tokenizer, self.processor
        earlier = [text for _, text in example.before]
        texts = (example.prompt, privileged, *earlier, self.config.system, self.config.privileged)
        if self.config.control_tokens == "as_text" and any(map(self._typed.typed_in, texts)):
            turns, tokenizer = self.messages(example, privileged, self._typed.marked), self._typed
            if processor is not None:
                processor = copy.copy(processor)
                processor.tokenizer = tokenizer
        text = self.turns.text(turns)
        if processor is None:
            if example.images:
                raise DataError(
                    "the student cannot see pictures",
                    why="it is a causal language model",
                    fix="use a vision-language model",
                )
            return torch.tensor(tokenizer(text, add_special_tokens=False).input_ids), {}
        pictures = {"images": [list(example.images)]} if example.images else {}  # nested: all of one row
        inputs = dict(processor(text=[text], return_tensors="pt", add_special_tokens=False, **pictures))
        inputs.pop("attention_mask", None)
        return inputs.pop("input_ids")[0], inputs

    @staticmethod
    def _stack(extras: Sequence[dict[str, Tensor]], length: int) -> dict[str, Tensor]:
        """What the processor made of the pictures of every row, one after the other along the first dimension.

        That dimension counts pictures, rows or flat patches, as the processor lays them out; a row without pictures
        has no part. All others are padded to the largest with zeros, as processors pad tiles and pictures themselves:
        models leave such tiles out, and masks of pixels become false there. An entry a token is padded like the ids.
        """
        out: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for extra in extras for name in extra):
            values = [extra[name] for extra in extras if name in extra]
            if not all(isinstance(value, torch.Tensor) for value in values):
                raise UserError(
                    f"the pictures of a batch cannot be put together: {name} is a {type(values[0]).__name__}",
                    where="student.path",
                    why="the processor of this model returns something else than tensors",
                    fix="use another vision-language model",
                )
            if name.endswith(PER_TOKEN):
                values = [extra.get(name, values[0][:, :0]) for extra in extras]
                values = [torch.nn.functional.pad(value, (length - value.shape[1], 0)) for value in values]
            out[name] = torch.cat(_padded(values))
        return out


def _padded(values: Sequence[Tensor]) -> list[Tensor]:
    """The tensors with zeros behind, up to the largest in all dimensions but the first."""
    sizes = [max(size) for size in zip(*(value.shape[1:] for value in values), strict=True)]
    room = [[(0, most - own) for most, own in zip(sizes, value.shape[1:], strict=True)] for value in values]
    return [
        torch.nn.functional.pad(value, [side for pair in reversed(one) for side in pair])
        if any(map(any, one))
        else value
        for value, one in zip(values, room, strict=True)
    ]


def lengthen(inputs: dict[str, Tensor], shape: torch.Size) -> dict[str, Tensor]:
    """Inputs with an entry a token, continued to the length of `shape` as text (type 0)."""
    per_token = {name: values for name, values in inputs.items() if name.endswith(PER_TOKEN)}
    pad = torch.nn.functional.pad
    return inputs | {name: pad(values, (0, shape[1] - values.shape[1])) for name, values in per_token.items()}
