"""LanguageStudent: any causal language model or image-text-to-text model of transformers, as an on-policy student.

- `prompts` writes examples with the model's chat template, left padded; `generate` samples responses with the model's
  own cache. `compose` puts sampled responses behind other prompts (with or without privileged text), token for token.
- `hidden` gives the last hidden states, `lm_head` / `head_weight` / `project` the way from there to logits. So a loss
  can select rows before it touches the vocabulary. `logprobs` scores responses the simple way.
- A response is a pure function of weights, prompt and the sample's generator.

What differs from `model.generate(do_sample=True)`: every sample has a generator of its own (see `sampling`). Defaults
of the model's generation config other than its stop tokens do not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidalign.data.examples import Example
from vidalign.engine import zero3
from vidalign.engine.autocast import present_autocast
from vidalign.engine.layers import match_frozen
from vidalign.engine.rng import generator
from vidalign.errors import UserError
from vidalign.losses.projected import Head, Part, Projected, Toward
from vidalign.students.base import Pass, Student, require_list
from vidalign.students.chat import ChatEncoder, TokenBatch, lengthen
from vidalign.students.heads import HeadLosses, copied_head, head_weights
from vidalign.students.language_config import SHIPPED_TOKENIZERS, ChatConfig, LanguageSpec, Sampling
from vidalign.students.lengths import Room, context_of
from vidalign.students.sampling import CounterSampler, log_probabilities
from vidalign.students.scaled_logits import logit_factor
from vidalign.students.stops import stop_ids_of, token_ids

PICTURES = ("image_token_id", "image_token_index", "video_token_id", "vision_start_token_id")
"""Config entries of tokens that stand for pictures."""

Sample = Callable[[Sequence[Example], Sequence[torch.Generator]], list[str]]


class LanguageStudent(Student[LanguageSpec]):
    """A language model with its chat encoder. N conversations, P prompt columns, R response columns, D, V."""

    spec_type = LanguageSpec
    inside = "model"
    __call__: Callable[..., Tensor]

    def __init__(self, spec: LanguageSpec, model: Any, tokenizer: Any, processor: Any = None) -> None:
        super().__init__()
        from transformers import GenerationConfig

        self.spec, self.section, self.own_prompts = spec, "student", False
        """`own_prompts`: whether a teacher writes its prompts by settings of its own, not by those of the student."""
        self.model = model.eval()  # a rollout and its scoring must be the same function: no dropout, ever
        self._converse(tokenizer, processor)
        self.picture_ids = sorted({int(i) for name in PICTURES if (i := getattr(model.config, name, None)) is not None})
        """Placeholders of picture features: a response that holds one could not be read again."""
        model.generation_config = GenerationConfig()
        self._factor = logit_factor(model.config)
        self.entries: int | None = None
        """Entries of the head that are compared and drawn, where they are not all: see `common_tokens.limit`."""
        self.losses = HeadLosses(model)

    @classmethod
    def from_spec(cls, spec: LanguageSpec, seed: int = 0) -> LanguageStudent:
        """A model with random weights that depend on `seed` only."""
        from vidalign.students.language_checkpoint import new_model, tokenizer_and_processor

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = new_model(spec.config)
        return cls(spec, model, *tokenizer_and_processor(spec.tokenizer, model.config))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> LanguageStudent:
        """A saved student, a shipped one (`tokens/student`), or a transformers model by folder or hub name."""
        from vidalign.students import language_checkpoint

        return language_checkpoint.load(str(path)).to(device)

    def configure(
        self, chat: ChatConfig | None = None, sampling: Sampling | None = None, section: str = "student"
    ) -> LanguageStudent:
        """Other chat or sampling settings than those that came with the weights; they are saved with the student.

        section: of the recipe that gives them. Raises `UserError` for a chat template that cannot be read.
        """
        self.spec = replace(self.spec, chat=chat or self.spec.chat, sampling=sampling or self.spec.sampling)
        self.section = section
        self._converse(self.chat.tokenizer, self.chat.processor)
        return self

    def freeze(self, patterns: Sequence[str]) -> LanguageStudent:
        """Do not train what these name, see `match_frozen`; shared weights are frozen by any of their names."""
        named = dict(self.named_parameters(remove_duplicate=False))
        for name in match_frozen(list(named), patterns) if patterns else ():
            named[name].requires_grad_(False)
        return self

    def _converse(self, tokenizer: Any, processor: Any) -> None:
        """Write and end turns as the specification says."""
        context, own = context_of(self.model.config), self.section == "student"
        response = self.spec.sampling.max_new_tokens if own else 0
        room = Room(context, response, self.spec.chat.max_prompt_length, self.section)
        self.chat = ChatEncoder(tokenizer, self.spec.chat, processor, room)
        self.spec = replace(self.spec, chat=self.chat.config)
        self.stop_ids = stop_ids_of(self.chat, self.spec)
        """What ends a response: the tokenizer's end of text, the end of a turn in the template, those of the spec."""
        if self.chat.end is None:
            self.chat.end = next(iter(self.stop_ids or self._stops(self.spec.sampling)))

    def adapter_settings(self) -> dict[str, str]:
        """Where the model comes from, and that it writes text: servers ask for both."""
        base = {} if self.spec.tokenizer in SHIPPED_TOKENIZERS else {"base_model_name_or_path": self.spec.tokenizer}
        return {"task_type": "CAUSAL_LM", **base}

    def spec_of(self, weights: Mapping[str, Tensor]) -> LanguageSpec:
        """Untied where head and embedding, which share their weights here, have become two."""
        from vidalign.students.language_checkpoint import aliases, untied

        shared = (
            [f"model.{key.replace('.base_layer', '')}" for key in keys]  # a layer under its adapter
            for keys in aliases(self.model)
            if len(keys) > 1
        )
        same = (torch.equal(weights[keys[0]], weights[key]) for keys in shared for key in keys)
        return self.spec if all(same) else replace(self.spec, config=untied(self.spec.config))

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """One safetensors file: the weights, the spec as JSON under "spec", and `metadata`. A file that is called
        model.safetensors gets beside it what makes its folder one of transformers: configuration, tokenizer,
        processor, generation settings."""
        from vidalign.students import language_checkpoint

        language_checkpoint.save(self, Path(path), metadata or {})

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> LanguageStudent:
        """Of `.to` and the like. Eager attention takes its softmax in fp32, where the mask of fp64 is infinite: a row
        of padding would be NaN."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.head_weight.dtype == torch.float64 and self.model.config._attn_implementation == "eager":
            try:
                self.model.set_attn_implementation("sdpa")
            except ValueError as error:  # Gemma 2
                raise UserError(
                    f"models of type {self.model.config.model_type!r} do not compute in fp64",
                    where="engine.precision",
                    why="their attention is written out, and its mask is infinite in fp64",
                    fix="use fp32 or bf16",
                ) from error
        return self

    @property
    def device(self) -> torch.device:
        return self.head_weight.device

    @property
    def lm_head(self) -> Any:
        """The linear layer from hidden states ``[..., D]`` to logits ``[..., V]``."""
        return self.model.get_output_embeddings()

    @property
    def head_weight(self) -> Tensor:
        """``[V, D]``; may be the embedding itself. See `project` for the logits."""
        weight: Tensor = next(self.lm_head.parameters())  # by name, ZeRO-3 would gather it for every call from then on
        return weight

    def gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute layers in the backward pass (non-reentrant); dropout stays off."""
        if enabled:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        elif self._layers():
            self.model.gradient_checkpointing_disable()

    # --- conversations ---

    def prompts(self, examples: Sequence[Example], privileged: Sequence[str] | None = None) -> TokenBatch:
        """Prompts alone, see `ChatEncoder.prompts`; on the student's device."""
        return self._here(self.chat.prompts(examples, privileged))

    def compose(
        self,
        examples: Sequence[Example],
        response_ids: Tensor,
        response: Tensor,
        privileged: Sequence[str] | None = None,
    ) -> TokenBatch:
        """Given responses ``[N, R]`` behind the examples' prompts, bare or privileged; see `ChatEncoder.compose`."""
        return self._here(self.chat.compose(examples, response_ids.cpu(), response.cpu(), privileged))

    @torch.no_grad()
    def generate(
        self, prompts: TokenBatch, generators: Sequence[torch.Generator] | None, sampling: Sampling | None = None
    ) -> TokenBatch:
        """Responses to prompts (R = 0) with one CPU generator each: a batch with ids, masks and log-probabilities.

        logprobs are those of the policy at the sampling temperature (1 when greedy), before top-p and top-k. They are
        also before placeholders of pictures are left out, which are never drawn.
        `generators` may be None when the temperature is 0.
        """
        assert prompts.response.shape[1] == 0, "generation begins where the prompt ends"
        sampling = sampling or self.spec.sampling
        self._check_context(prompts.mask, sampling.max_new_tokens)
        sampler = CounterSampler(sampling, generators, self.picture_ids)
        self.model.eval()  # whatever a wrapper has set: the cache needs it
        ids = self.model.generate(
            input_ids=prompts.ids,
            attention_mask=prompts.mask.long(),
            **prompts.inputs,
            logits_processor=[sampler],
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self._stops(sampling),
            pad_token_id=self.chat.pad,
        )
        sampled = ids[:, prompts.ids.shape[1] :]
        stopped = torch.isin(sampled, torch.tensor(self._stops(sampling), device=sampled.device))
        response = stopped.cumsum(1) - stopped.long() == 0  # up to and with the first stop token
        sampled = sampled.masked_fill(~response, self.chat.pad)
        ids = torch.cat([prompts.ids, sampled], 1)
        logprobs = torch.stack(sampler.logprobs, 1) * response
        mask = torch.cat([prompts.mask, response], 1)
        return TokenBatch(ids, mask, response, lengthen(prompts.inputs, ids.shape), logprobs)

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str | Example], *, frames: int = 0, seed: int = 0, temperature: float | None = None
    ) -> list[str]:
        """The response to every prompt; an `Example` brings pictures.

        frames: a text has none; temperature: the student's own unless given.
        """
        require_list(prompts)
        examples = [Example(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        sampling = self.spec.sampling if temperature is None else replace(self.spec.sampling, temperature=temperature)
        generators = [generator(seed, "sample", 0, n) for n in range(len(examples))]
        return self.decode(self.generate(self.prompts(examples), generators, sampling))

    def sampler(self, frames: int = 0, method: str = "", *, temperature: float = 0.0, **parts: Any) -> Sample:
        """How evaluations sample it: examples and one generator each to responses, without privileged text."""
        sampling = replace(self.spec.sampling, temperature=temperature)
        precision = present_autocast(self.device)  # of the engine's call that asks for the sampler

        def answer(examples: Sequence[Example], generators: Sequence[torch.Generator]) -> list[str]:
            with precision():
                return self.decode(self.generate(self.prompts(examples), generators, sampling))

        return answer

    def decode(self, batch: TokenBatch) -> list[str]:
        """Text of every response, without special tokens."""
        return self.chat.decode(batch.response_ids, batch.response)

    # --- scoring ---

    def hidden(self, ids: Tensor, mask: Tensor, inputs: dict[str, Tensor] | None = None) -> Tensor:
        """Last hidden states ``[N, L, D]``, after the final norm; differentiable; padding may be anywhere.

        `TokenBatch.predicting` selects those that predict the response.
        """
        self._check_context(mask)
        positions = {}
        if not hasattr(self.model.base_model, "get_rope_index"):  # models with one compute them from the mask
            positions["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        with self._training_layers():
            out = self.model.base_model(
                input_ids=ids, attention_mask=mask.long(), use_cache=False, **positions, **(inputs or {})
            )
        return self._reached(out.last_hidden_state)

    def _reached(self, states: Tensor) -> Tensor:
        """Hidden states of a batch without pictures depend on no weight where only the vision tower is trained: its
        gradient is 0 then, and the step goes on."""
        trained = [p for p in self.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
        if states.requires_grad or not trained:
            return states
        if zero3.is_divided(trained[0]):
            raise UserError(
                "no prompt of a micro-batch has a picture, and only the vision tower is trained",
                where="student.freeze",
                why="under ZeRO-3 a gradient of 0 would need all its weights whole",
                fix="use engine.zero_stage=2, or prompts that all bring a picture",
            )
        return states + 0.0 * torch.stack([p.flatten()[0].to(states) for p in trained]).sum()

    def response_hidden(self, batch: TokenBatch) -> Tensor:
        """``[N, R, D]``: the hidden states that predict the response tokens."""
        return batch.predicting(self.hidden(batch.ids, batch.mask, batch.inputs))

    def project(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of hidden states ``[..., D]``; rows are independent, so select them first."""
        logits: Tensor = (
            self.lm_head(hidden)
            if self.entries is None
            else nn.functional.linear(hidden, *head_weights(self.lm_head, self.entries))
        )
        return logits if self._factor == 1.0 else logits * self._factor

    def distil(
        self,
        hidden: Tensor,
        parts: Sequence[Part],
        tokens: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Projected:
        """Losses of hidden states ``[R, D]`` through the head, a few rows of logits at a time, see `projected_loss`."""
        if self._factor != 1.0:
            parts = [self._scaled(part) for part in parts]
        found: Projected = self.losses(hidden, parts, tokens, temperature, self._factor, self.entries)
        return found

    def copied_head(self) -> Head:
        """`project` with copies of the weights as they are now; all ranks call it, see `heads.copied_head`."""
        return copied_head(self.lm_head, self._factor, self.entries)

    def _scaled(self, part: Part) -> Part:
        """The states of a target that goes through the same head."""
        if not isinstance(part, Toward) or part.head is not None:
            return part
        return replace(part, hidden=part.hidden * self._factor)

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        """``[N, R]`` log-probabilities of the response tokens, 0 on padding; all logits are in memory at once."""
        logp = log_probabilities(self.project(self.response_hidden(batch)), temperature)
        return logp.gather(-1, batch.response_ids[..., None])[..., 0] * batch.response

    def forward(self, batch: TokenBatch) -> Tensor:
        return self.logprobs(batch)

    def on_pass(self, listener: Callable[[Pass], None]) -> None:
        """At rows as they begin: later calls of a generation, which find a filled cache, go on with them. Only a
        generation brings a cache, an empty one at first: then its rows are responses."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids")
            # called `past_key_values` up to transformers 5.23, `cache` since
            past = next((value for value in kwargs.values() if hasattr(value, "get_seq_length")), None)
            rows = len(ids if ids is not None else kwargs["inputs_embeds"])  # models of pictures embed them themselves
            if past is None or past.get_seq_length() == 0:
                listener(Pass(rows, rows, responses=0 if past is None else rows))

        self.model.base_model.register_forward_pre_hook(hook, with_kwargs=True)

    # --- parts ---

    def _check_context(self, mask: Tensor, more: int = 0) -> None:
        """Raises `UserError` where a row, and as many tokens `more`, are beyond the model's context."""
        context = self.chat.room.context
        if (
            context is not None
            and mask.shape[1] + more > context
            and (longest := int(mask.sum(1).max()) + more) > context
        ):
            raise UserError(
                f"a conversation is longer than the context of the {self.section}",
                where=f"{self.section}.path",
                why=f"{longest} tokens, with those of the response, and the model takes {context}",
                fix="shorten the prompts (chat.max_prompt_length, chat.long_prompts), or sampling.max_new_tokens",
            )

    def _stops(self, sampling: Sampling) -> list[int]:
        own = token_ids(self.chat.tokenizer, sampling.stop)
        return sorted({*self.stop_ids, *own})

    def _here(self, batch: TokenBatch) -> TokenBatch:
        device, dtype = self.device, self.head_weight.dtype
        inputs = {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in batch.inputs.items()
        }
        return TokenBatch(batch.ids.to(device), batch.mask.to(device), batch.response.to(device), inputs)

    def _layers(self) -> list[Any]:
        return [module for module in self.model.modules() if getattr(module, "gradient_checkpointing", False)]

    @contextmanager
    def _training_layers(self) -> Iterator[None]:
        """transformers recomputes layers only in training mode: set it on them alone, without their dropout."""
        layers = self._layers() if torch.is_grad_enabled() else []
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False
