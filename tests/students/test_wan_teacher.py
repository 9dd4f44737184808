"""Wan as bidirectional teacher: import, sampler against `WanPipeline`, guidance, and where it is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline
import tiny_wan
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from real_student import RECIPE
from run_helpers import BRIGHTNESS, vidalign
from safetensors.torch import save_file
from torch import Tensor

from vidalign import load_student, registry
from vidalign.errors import UserError
from vidalign.recipe import load_recipe
from vidalign.students.video import VideoStudent, VideoStudentSpec
from vidalign.students.video.guidance import Guidance, guided
from vidalign.students.video.many_steps import ManySteps, sample_many_steps
from vidalign.students.video.presets import preset
from vidalign.students.video.rollout import RolloutPlan
from vidalign.teachers.pipeline import PipelineTeacher
from vidalign.text.pretrained import build_features
from vidalign.trainer import Trainer

SIZE = ("--height", "32", "--width", "32")
PROMPTS = ["red ball falls", "blue square moves"]
NEGATIVE = "small large"
NEUTRAL = ManySteps(steps=4, shift=3.0, guidance=Guidance(5.0, NEGATIVE))


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of this module: a base, the checkpoint, the teacher and a causal student of it, a recipe."""
    made = tmp_path_factory.mktemp("wan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
        patch.chdir(made)
        network = wan()
        tiny_pipeline.save_base(made / "base", network)
        save_file(tiny_wan.weights(network), made / "wan.safetensors")
        (made / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        (made / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
        (made / "brightness.py").write_text(BRIGHTNESS, encoding="utf-8")
        for name, out in (("wan", "teacher"), ("self_forcing", "student")):
            words = ("import", name, "--checkpoint", "wan.safetensors", "--base", "base", *SIZE, "--out", out)
            assert vidalign(*words) == 0
        yield made


def wan() -> WanTransformer3DModel:
    """A network that hears its text: guidance moves its prediction as far as noise does."""
    made = tiny_wan.network()
    with torch.no_grad():
        for block in made.blocks:
            block.attn2.to_out[0].weight.mul_(30)
    return made


def pipeline(shift: float = 3.0) -> WanPipeline:
    """The pipeline of diffusers with the scheduler of the released 480p model."""
    made = WanPipeline.from_pretrained("base")
    made.scheduler = UniPCMultistepScheduler(
        num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    made.set_progress_bar_config(disable=True)
    made.transformer.double()
    return made


def teacher(dtype: torch.dtype = torch.float64) -> VideoStudent:
    return VideoStudent.load("teacher", dtype=dtype).eval()


def draws(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def features(prompts: list[str]) -> Tensor:
    text = teacher().spec.text | {"dtype": "float32"}
    return build_features(text)(prompts)


# --- import ---


@pytest.mark.parametrize("checkpoint", ["wan.safetensors", "base"])
def test_a_flat_checkpoint_and_a_diffusers_folder_become_a_teacher(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert vidalign("import", "wan", "--checkpoint", checkpoint, "--base", "base", *SIZE, "--out", str(out)) == 0
    assert "bidirectional, 50 UniPC steps at shift 3, guidance 5" in capsys.readouterr().out
    tiny_wan.assert_equal(tiny_wan.stored(out), wan().state_dict())
    written = json.loads((out / "vidalign.json").read_text())["spec"]
    assert written["cache"]["chunk_frames"] == 0 and written["preset"] == "wan"
    guidance = {"scale": 5.0, "negative_prompt": ""}
    assert written["sampler"]["many_steps"] == {"steps": 50, "shift": 3.0, "guidance": guidance}
    spec = VideoStudent.load(out).spec
    assert spec.bidirectional and spec.sampler.many_steps == ManySteps(50, 3.0, Guidance(5.0))


# --- the sampler ---


@pytest.mark.parametrize(("scale", "shift", "steps"), [(5.0, 3.0, 4), (5.0, 5.0, 7), (1.0, 3.0, 4)])
def test_the_sampler_is_that_of_the_pipeline(scale: float, shift: float, steps: int) -> None:
    """The same prompts, steps and noise: all frames of two videos of 9 pixel frames."""
    options = {"guidance_scale": scale, "negative_prompt": [NEGATIVE] * 2, "num_inference_steps": steps}
    size = {"height": 32, "width": 32, "num_frames": 9}
    expected = pipeline(shift)(PROMPTS, generator=draws(3, 4), output_type="latent", **options, **size).frames
    settings = ManySteps(steps, shift, Guidance(scale, NEGATIVE))
    made = sample_many_steps(
        teacher(), expected.shape[2], features(PROMPTS), features([NEGATIVE]), draws(3, 4), settings
    )
    torch.testing.assert_close(made.float(), expected.transpose(1, 2).float(), atol=1e-5, rtol=0)
    assert expected.std() > 0.5


def test_guidance_is_the_formula() -> None:
    """uncond + s (cond - uncond), number by number; of the velocity as of x0."""
    network, scale = teacher(torch.float32), 3.5
    text, negative = features(PROMPTS[:1]), features([NEGATIVE])
    x = torch.randn(1, 2, 16, 4, 4, generator=draws(0)[0])
    sigma = torch.tensor([0.7])
    with torch.no_grad():
        cond, uncond = (network.bidirectional(x, sigma, words) for words in (text, negative))
        found = guided(lambda words: network.bidirectional(x, sigma, words), text, negative, scale)
        x0 = guided(lambda words: network.bidirectional(x, sigma, words, output="x0"), text, negative, scale)
    by_hand = [u + scale * (c - u) for c, u in zip(cond.flatten().tolist(), uncond.flatten().tolist(), strict=True)]
    torch.testing.assert_close(found.flatten(), torch.tensor(by_hand), atol=1e-5, rtol=0)
    torch.testing.assert_close(x0, x - 0.7 * found, atol=1e-5, rtol=0)
    assert (cond - uncond).abs().max() > 0.02, "the two texts make a difference"


def test_without_guidance_the_network_is_asked_once() -> None:
    asked: list[Tensor] = []
    text = torch.ones(1, 1, 1)
    assert guided(lambda words: asked.append(words) or words, text, None, 1.0) is text and len(asked) == 1


@pytest.mark.parametrize(("wrong", "message"), [({"scale": 0.5}, "scale must be at least 1"), ({}, "")])
def test_ranges_of_guidance(wrong: dict[str, Any], message: str) -> None:
    if message:
        with pytest.raises(ValueError, match=message):
            Guidance(**wrong)
    assert Guidance().prompts == [] and Guidance(2.0).prompts == [""] and Guidance(2.0, "bad").prompts == ["bad"]


def test_a_teacher_is_sampled_by_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """`vidalign sample` and `load_student` take the many-step sampler of the folder; evaluations do, too."""
    network = load_student("teacher")
    assert isinstance(network, VideoStudent)
    network.spec.sampler.many_steps = replace(NEUTRAL, steps=2)
    chunks: list[tuple[int, Tensor]] = []
    clips = network.sample(PROMPTS, frames=3, seed=1, on_chunk=lambda *chunk: chunks.append(chunk))
    assert clips.shape == (2, 9, 3, 32, 32) and [index for index, _ in chunks] == [0]
    assert torch.equal(chunks[0][1], clips)
    passes: list[int] = []
    network.on_pass(lambda one: passes.append(one.rows))
    network.sampler(3, "teacher", steps=3)(PROMPTS[1:], draws(0))
    assert passes == [1] * 6, "the settings of an evaluation come before those of the folder"
    words = ("sample", "teacher", "--prompt", PROMPTS[0], "--frames", "9")
    assert vidalign(*words, "--then", "0.2s blue", "--out", "x.mp4") == 2
    assert "the whole video of a prompt at once" in capsys.readouterr().err
    assert vidalign(*words, "--out", "x.mp4") == 0 and Path("x.mp4").is_file()


# --- as a teacher ---


DMD = ("objective={name: dmd}", "rewards={}", "teacher={path: teacher}")


def trainer(run: str, *words: str) -> Trainer:
    return Trainer(load_recipe("recipe.yaml", [*DMD, *words]), run)


def test_dmd_learns_from_it_under_its_own_guidance() -> None:
    """Guidance is that of the folder unless the recipe says otherwise."""
    made = trainer("run", "student.adapter.rank=4")
    taught = made.ctx.teacher
    assert taught.guidance == Guidance(5.0, "") and taught.negative.shape == (1, 512, 48)
    x, sigma, text = torch.randn(1, 3, 16, 4, 4, generator=draws(0)[0]), torch.tensor([0.6]), made.ctx.text(PROMPTS[:1])
    with torch.no_grad():
        c, u = (taught.model.bidirectional(x, sigma, words) for words in (text, made.ctx.text([""])))
    torch.testing.assert_close(taught.velocity(x, sigma, text), u + 5.0 * (c - u), atol=1e-5, rtol=0)
    assert (c - u).abs().max() > 0.02
    made.fit()
    assert made.step == 2
    other = trainer("other", "teacher.guidance={scale: 2, negative_prompt: large}").ctx.teacher
    assert other.guidance == Guidance(2.0, "large")


def test_its_folder_is_a_pipeline_for_clips(tmp_path: Path) -> None:
    """`teacher.name: pipeline` reads the same folder: VAE, text encoder and tokenizer are links to the base."""
    options = {"max_sequence_length": 16, "num_frames": 9}
    config = PipelineTeacher.Config("teacher", steps=2, cache=str(tmp_path), guidance=Guidance(5.0), options=options)
    clips = PipelineTeacher.from_recipe(config, 3, teacher().spec).clips(PROMPTS, draws(0, 1))
    assert clips.shape == (2, 9, 3, 32, 32)


# --- where it is refused ---


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert vidalign("validate", "recipe.yaml", "--plugin", "brightness.py", *words) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_teacher_is_no_student_of_a_causal_objective(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["student.preset=self_forcing"], ["data.frames=4"]):
        message = told(capsys, "student.path=teacher", *words)
        assert message.startswith("error: 'teacher', a bidirectional network, is no causal student - override 1 - ")
        assert message.endswith("or import its checkpoint by a causal preset, see `vidalign list presets`")
        assert message.count(" - ") == 3


def test_a_teacher_is_no_few_step_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("objective={name: dopd_video, block: 4}", "rewards={}", "teacher={name: few_step, path: teacher}")
    message = told(capsys, *few)
    assert message.startswith("error: weights of wan have no few-step velocity - override 3 - the network is")
    assert "objective.name: dmd with teacher.name: model" in message


def test_a_teacher_of_another_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """By the specifications: no weights are loaded."""
    message = told(capsys, *DMD, "student.height=64")
    assert message.startswith("error: student and teacher differ in their height - override 3 - the student has 64")


def test_causal_calls_are_refused_from_python() -> None:
    network = teacher(torch.float32)
    x, text = torch.zeros(1, 3, 16, 4, 4), torch.zeros(1, 1, 48)
    with pytest.raises(UserError, match="no causal student"):
        network.velocity(x, torch.ones(1), text)
    with pytest.raises(UserError, match="no causal student"):
        network.sampler(3)
    with pytest.raises(UserError, match=r"no causal student - data\.frames"):
        network.spec.check_frames(3, "data.frames")
    with pytest.raises(UserError, match="no causal student"):
        network.rollout(text, RolloutPlan(prefix=0, branch=1), network.draw_noise(RolloutPlan(0, 1), draws(0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": {"chunk_frames": 0}}, "chunk_frames is 0, sampler.many_steps is None - .* - give both, or neither"),
        ({"sampler": {"many_steps": {}}}, "chunk_frames is 3, sampler.many_steps is Many"),
        ({"cache": {"chunk_frames": 0, "window": 6, "sink": 3}}, "chunk_frames: 0 takes no window and no sink"),
        ({"sampler": {"many_steps": {"step": 9}}}, "unknown key 'step' - .*many_steps - did you mean 'steps'"),
        ({"sampler": {"many_steps": {"guidance": {"scal": 9}}}}, "did you mean 'scale'"),
    ],
)
def test_a_specification_that_is_neither_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VideoStudentSpec.from_dict(preset("self_forcing").spec({}).to_dict() | changes)
