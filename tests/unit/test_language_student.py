"""Rollout and scoring of language students are one function, token for token, under every padding and template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from language_helpers import CONFIGS, make, qwen3_vl
from language_helpers import generators as numbers

from vidalign.data.examples import Example
from vidalign.errors import CheckpointError, DataError, UserError
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import ChatConfig, LanguageSpec, Sampling
from vidalign.students.sampling import draw
from vidalign.worlds.language import pictures, tokens


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for rounding: transformers hands the logits of a rollout on in fp32."""
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6, check_dtype=False)


def examples(name: str, count: int = 3) -> list[Example]:
    """Prompts of different lengths; with a picture each for a model that sees."""
    world = pictures if name == "llava" else tokens
    found = [world.example("train", 0, sample, "hints") for sample in (0, 3, 5, 6)[:count]]
    assert len({len(e.prompt) for e in found}) == count
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_scoring_sees_what_the_rollout_saw(name: str) -> None:
    student, asked = make(name), examples(name)
    rollout = student.generate(student.prompts(asked), numbers(0, 1, 2))
    assert rollout.logprobs is not None and rollout.ids.shape == rollout.mask.shape
    assert (rollout.logprobs[~rollout.response] == 0).all() and rollout.logprobs.min() < -0.1
    same(student.logprobs(rollout), rollout.logprobs)
    composed = student.compose(asked, rollout.response_ids, rollout.response)
    assert torch.equal(composed.ids, rollout.ids) and torch.equal(composed.mask, rollout.mask)
    same(student.logprobs(composed), rollout.logprobs)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_plain_model_without_padding_agrees(name: str) -> None:
    """An independent look: transformers' own logits of one unpadded conversation at a time."""
    student, asked = make(name), examples(name)
    rollout = student.generate(student.prompts(asked), numbers(0, 1, 2))
    for n, example in enumerate(asked):
        text = student.chat.text(example)
        source = student.chat.processor or student.chat.tokenizer
        images = {"images": list(example.images)} if example.images else {}
        inputs = dict(source(text=[text], return_tensors="pt", add_special_tokens=False, **images))
        own = rollout.response_ids[n][rollout.response[n]]
        ids = torch.cat([inputs["input_ids"][0], own])[None]
        pixels = {k: v.double() for k, v in inputs.items() if k == "pixel_values"}
        logp = student.model(input_ids=ids, **pixels).logits[0].log_softmax(-1)
        expected = logp[len(ids[0]) - len(own) - 1 : -1].gather(1, own[:, None])[:, 0]
        same(rollout.logprobs[n][rollout.response[n]], expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    student, asked = make(name), examples(name)
    together = student.generate(student.prompts(asked), numbers(0, 1, 2))
    backwards = student.generate(student.prompts(asked[::-1]), numbers(2, 1, 0))
    for n, example in enumerate(asked):
        alone = student.generate(student.prompts([example]), numbers(n))
        for other, row in ((together, n), (backwards, 2 - n)):
            assert (
                alone.response_ids[0][alone.response[0]].tolist()
                == other.response_ids[row][other.response[row]].tolist()
            )
            same(alone.logprobs[0][alone.response[0]], other.logprobs[row][other.response[row]])
    torch.randn(3)  # the global generator is nobody's business
    assert torch.equal(student.generate(student.prompts(asked), numbers(0, 1, 2)).ids, together.ids)
    assert not torch.equal(student.generate(student.prompts(asked), numbers(0, 1, 2, seed=1)).ids, together.ids)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "llava"])
def test_the_response_stands_in_the_same_columns_under_every_prompt(name: str) -> None:
    student, asked = make(name), examples(name)
    rollout = student.generate(student.prompts(asked), numbers(0, 1, 2))
    hints = [asked[0].privileged, "", " | ".join([asked[2].privileged] * 5)]
    told = student.compose(asked, rollout.response_ids, rollout.response, hints)
    assert torch.equal(told.response_ids, rollout.response_ids) and torch.equal(told.response, rollout.response)
    assert told.prompt_length > rollout.prompt_length, "a longer neighbour pads the bare prompt further"
    scored, bare = student.logprobs(told), student.logprobs(rollout)
    same(scored[1], bare[1])  # nothing told: nothing changes
    assert (scored[0] - bare[0]).abs().max() > 1e-3 and (scored[2] - bare[2]).abs().max() > 1e-3
    for n, hint in enumerate(hints):
        alone = student.compose([asked[n]], rollout.response_ids[n : n + 1], rollout.response[n : n + 1], [hint])
        same(student.logprobs(alone)[0], scored[n])
    empty = student.compose(asked, rollout.response_ids, rollout.response, ["", "", ""])
    assert torch.equal(empty.ids, rollout.ids) and torch.equal(empty.mask, rollout.mask)


def test_the_hint_stands_in_the_user_turn_before_the_assistant_marker() -> None:
    student, (example,) = make(), examples("qwen3", 1)
    text = student.chat.text(example, example.privileged)
    assert text.index(example.prompt) < text.index(example.privileged) < text.index("<end>") < text.index("<assistant>")
    assert text.endswith("<assistant>")
    system = make(chat={"system": "answer", "privileged": "{privileged} | {prompt}"})
    assert system.chat.text(example).startswith("<system> answer <end> <user> ")
    swapped = system.chat.text(example, example.privileged)
    assert swapped.index(example.privileged) < swapped.index(example.prompt)
    first = student.generate(student.prompts([example]), numbers(0))
    second = system.generate(system.prompts([example]), numbers(0))
    assert first.prompt_length + 3 == second.prompt_length
    same(system.logprobs(second), second.logprobs)


def test_a_sampled_padding_token_is_a_token() -> None:
    """Masks come from positions, not from ids: padding inside a response is attended and scored."""
    student, asked = make(), examples("qwen3", 2)
    ids = torch.tensor([[20, 0, 21, 2], [0, 2, 0, 0]])
    response = torch.tensor([[True] * 4, [True, True, False, False]])
    batch = student.compose(asked, ids, response)
    logp = student.logprobs(batch)
    assert (logp[0] < 0).all() and (logp[1, :2] < 0).all() and (logp[1, 2:] == 0).all()
    plain = student.model(input_ids=batch.ids[:1][batch.mask[:1]][None]).logits[0].log_softmax(-1)
    expected = plain[-5:-1].gather(1, ids[0][:, None])[:, 0]
    same(logp[0], expected)


def force(student: LanguageStudent, token: int) -> None:
    """Make one token all but certain."""
    student.model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(student.head_weight), requires_grad=False)
    bias = torch.zeros(len(student.head_weight), dtype=torch.float64)
    bias[token] = 50.0
    student.model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)


@pytest.mark.parametrize(("token", "length"), [(2, 1), (20, 12), (0, 12), (8, 1)])
def test_where_a_response_ends(token: int, length: int) -> None:
    """At the model's end token, at a named stop token, or at the longest length; never at padding."""
    student = make("llama", sampling={"max_new_tokens": 12, "stop": ["|"]})
    force(student, token)
    rollout = student.generate(student.prompts(examples("llama", 2)), numbers(0, 1))
    assert student.chat.tokenizer.convert_tokens_to_ids("|") == 8
    assert rollout.response.sum(1).tolist() == [length] * 2 and rollout.response_ids[0, 0] == token
    assert torch.equal(rollout.mask[:, -rollout.response.shape[1] :], rollout.response)


def test_responses_of_different_lengths_are_padded_on_the_right() -> None:
    student = make("llama", scale=1.0)
    rollout = student.generate(student.prompts(examples("llama") * 4), numbers(*range(12)), Sampling(60))
    lengths = rollout.response.sum(1)
    assert lengths.unique().numel() > 2, "the random model stops at different places"
    assert (rollout.response.long().diff(dim=1) <= 0).all() and (rollout.response_ids[~rollout.response] == 0).all()
    same(student.logprobs(rollout), rollout.logprobs)


# --- sampling ---


def test_draws_follow_the_distribution() -> None:
    """A fine grid of uniform numbers hits every token as often as it is likely."""
    p = torch.tensor([0.1, 0.45, 0.05, 0.4])
    grid = (torch.arange(20000) + 0.5) / 20000

    def shares(**settings: float) -> list[float]:
        found = draw(p.log().expand(20000, 4), grid, Sampling(**settings))  # type: ignore[arg-type]
        return (found.bincount(minlength=4) / 20000).tolist()

    assert shares() == pytest.approx([0.1, 0.45, 0.05, 0.4], abs=1e-3)
    assert shares(top_k=2) == pytest.approx([0, 0.45 / 0.85, 0, 0.4 / 0.85], abs=1e-3)
    assert shares(top_p=0.5) == pytest.approx([0, 0.45 / 0.85, 0, 0.4 / 0.85], abs=1e-3)
    assert shares(top_p=0.44) == [0, 1, 0, 0] == shares(temperature=0)
    assert shares(top_p=0.9, top_k=3) == pytest.approx([0.1 / 0.95, 0.45 / 0.95, 0, 0.4 / 0.95], abs=1e-3)


def test_banned_tokens_are_never_drawn() -> None:
    p = torch.tensor([0.1, 0.45, 0.05, 0.4])
    grid = (torch.arange(20000) + 0.5) / 20000
    found = draw(p.log().expand(20000, 4), grid, Sampling(top_p=0.9), banned=[1])
    assert (found.bincount(minlength=4) / 20000).tolist() == pytest.approx([0.2, 0, 0, 0.8], abs=1e-3)
    assert draw(p.log()[None], grid[:1], Sampling(temperature=0), banned=[1]).item() == 3
    assert make("llava").picture_ids == [6] and make("llama").picture_ids == []


def test_greedy_and_cold_sampling() -> None:
    student, asked = make(), examples("qwen3")
    greedy = student.generate(student.prompts(asked), None, Sampling(8, temperature=0))
    logits = student.project(student.response_hidden(greedy))
    best = logits.argmax(-1)
    assert torch.equal(best[greedy.response], greedy.response_ids[greedy.response])
    cold = student.generate(student.prompts(asked), numbers(0, 1, 2), Sampling(8, temperature=0.5))
    same(student.logprobs(cold, 0.5), cold.logprobs)
    assert (student.logprobs(cold, 1.0) - cold.logprobs).abs().max() > 1e-3


# --- gradients and files ---


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_checkpointing_changes_no_gradient_and_leaves_the_cache_alone(name: str) -> None:
    grads = []
    for enabled in (False, True):
        student, asked = make(name), examples(name)
        student.gradient_checkpointing(enabled)
        rollout = student.generate(student.prompts(asked), numbers(0, 1, 2))
        student.requires_grad_(True)
        student.logprobs(rollout).sum().backward()
        grads.append({key: p.grad for key, p in student.named_parameters()})
        same(student.logprobs(rollout).detach(), rollout.logprobs)
    for key, gradient in grads[0].items():
        same(grads[1][key], gradient)


@pytest.mark.parametrize("name", ["qwen3", "llama", "llava"])
def test_a_saved_student_answers_the_same(name: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    student, asked = make(name, chat={"system": "answer"}).float(), examples(name)
    student.save(tmp_path / "s.safetensors", {"scores": "{}"})
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        heads = [key for key in file.keys() if key.endswith(("lm_head.weight", "embed_tokens.weight"))]
    assert len(heads) == (1 if name == "qwen3" else 2), "a tied head is stored once"
    again = LanguageStudent.load(tmp_path / "s.safetensors")
    assert again.spec == student.spec
    weights = again.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in student.state_dict().items())
    first, second = (s.generate(s.prompts(asked), numbers(0, 1, 2)) for s in (student, again))
    assert torch.equal(first.ids, second.ids)
    same(second.logprobs, first.logprobs)  # kernels round by how the weights lie in memory


def test_a_transformers_folder_is_a_student(tmp_path: Path) -> None:
    student = make("llama").float()
    student.model.generation_config.eos_token_id = [2, 8]  # as instruction-tuned models have them
    student.model.generation_config.update(do_sample=True, top_k=1)  # must not count
    student.model.save_pretrained(tmp_path / "hf")
    student.chat.tokenizer.save_pretrained(tmp_path / "hf")
    again = LanguageStudent.load(tmp_path / "hf").configure(ChatConfig(system="answer"), Sampling(5))
    assert again.spec.chat.system == "answer" and again.spec.sampling.max_new_tokens == 5
    again.save(tmp_path / "s.safetensors")
    third = LanguageStudent.load(tmp_path / "s.safetensors")
    assert again.stop_ids == third.stop_ids == [2, 8]
    asked = examples("llama")
    first, second = (s.generate(s.prompts(asked), numbers(0, 1, 2)) for s in (again, third))
    assert torch.equal(first.ids, second.ids) and first.response.shape[1] <= 5


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="stop token 'stopp' is not in the vocabulary"):
        make(sampling={"stop": ["stopp"]})
    with pytest.raises(UserError, match="cannot be built"):
        LanguageStudent.from_spec(LanguageSpec({"model_type": "qwen33"}))
    with pytest.raises(UserError, match="once each"):
        ChatConfig(privileged="{prompt}")
    with pytest.raises(UserError, match="top_p is 0"):
        Sampling(top_p=0)
    with pytest.raises(DataError, match="cannot see pictures"):
        make().prompts([replace(examples("llava")[0])])
    with pytest.raises(UserError, match="final_logit_softcapping"):
        config = {**CONFIGS["llama"], "model_type": "vaultgemma", "head_dim": 8, "final_logit_softcapping": 30.0}
        LanguageStudent.from_spec(LanguageSpec(config))
    with pytest.raises(CheckpointError, match="no such weights"):
        LanguageStudent.load("tokens/studnt")


def test_a_model_with_positions_of_its_own_scores_what_it_rolled_out() -> None:
    """Qwen3-VL places text and pictures in three dimensions: with and without pictures, padded differently."""
    student = qwen3_vl()
    plain = student.prompts([Example("chain : 7 | 1 : plus 5"), Example("walk : p | 1 : red | 2 : blue | 3 : red")])
    picture = torch.tensor([8, 6, 6, 6, 6, 9]).expand(2, 6)  # start, four places, end: in front of the question
    seen = replace(
        plain,
        ids=torch.cat([plain.ids[:, :-3], picture, plain.ids[:, -3:]], 1),
        mask=torch.cat([plain.mask, torch.ones(2, 6, dtype=torch.bool)], 1),
        inputs={
            "pixel_values": torch.randn(32, 3 * 2 * 8 * 8, dtype=torch.float64, generator=numbers(0)[0]),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        },
    )
    seen.inputs["mm_token_type_ids"] = (seen.ids == 6).long()
    for prompts in (plain, seen):
        rollout = student.generate(prompts, numbers(0, 1), Sampling(10))
        same(student.logprobs(rollout), rollout.logprobs)
        assert not torch.isin(rollout.response_ids, torch.tensor(student.picture_ids)).any()


def test_load_student_knows_the_kind(tmp_path: Path) -> None:
    import vidalign

    make("qwen3").float().save(tmp_path / "s.safetensors")
    assert isinstance(vidalign.load_student(tmp_path / "s.safetensors"), LanguageStudent)
    assert not isinstance(vidalign.load_student("world/student"), LanguageStudent)


def test_padded_prompts_in_fp64_are_those_of_fp32() -> None:
    """Eager attention, which the shipped students ask for, makes NaN of rows of padding in fp64."""
    narrow = LanguageStudent.load("tokens/student")
    examples = [tokens.example("train", 0, n, "none") for n in range(4)]
    batch = narrow.prompts(examples)
    assert not batch.mask.all(), "some prompts are padded"
    response = torch.ones(4, 3, dtype=torch.bool)
    given = narrow.compose(examples, torch.full((4, 3), 7), response)
    expected = narrow.logprobs(given)
    wide = LanguageStudent.load("tokens/student").double()
    found = wide.logprobs(given)
    assert found.dtype == torch.float64 and torch.allclose(found.float(), expected, atol=1e-4)


def test_settings_that_count_no_layers_are_no_sizes(tmp_path: Path) -> None:
    """A Qwen3 model carries `max_window_layers: 28` however few layers it has; a nested number of layers is checked."""
    student = make("qwen3")
    config = {**student.spec.config, "max_window_layers": 28}
    assert config["max_window_layers"] > len(student.model.state_dict())
    student.spec = replace(student.spec, config=config)
    student.save(tmp_path / "q.safetensors")
    assert LanguageStudent.load(tmp_path / "q.safetensors").spec.config["max_window_layers"] == 28
    student.spec = replace(student.spec, config={**config, "text_config": {"num_hidden_layers": 10**6}})
    student.save(tmp_path / "q.safetensors")
    with pytest.raises(CheckpointError, match="num_hidden_layers is 1000000, and the file holds"):
        LanguageStudent.load(tmp_path / "q.safetensors")
