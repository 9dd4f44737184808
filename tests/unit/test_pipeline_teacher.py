"""Clips of a diffusers pipeline: a stock Wan pipeline of one layer, sampled once and read back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vidalign.errors import DataError, UserError
from vidalign.recipe import load_recipe
from vidalign.students.video import VideoStudent, VideoStudentSpec
from vidalign.students.video.guidance import Guidance
from vidalign.teachers.clips import ClipShape
from vidalign.teachers.pipeline import PipelineTeacher, load_pipeline, offloaded
from vidalign.teachers.store import ClipStore
from vidalign.trainer import Trainer

PROMPTS = ["a cat", "a dog"]
SHAPE = ClipShape(5, 16, 16)
OPTIONS = {"max_sequence_length": 16, "num_frames": 5}
TRANSFORMER = {
    "patch_size": [1, 8, 8],
    "num_attention_heads": 1,
    "attention_head_dim": 16,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": 64,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 1,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    folder = tmp_path_factory.mktemp("pipeline")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "cat": 4, "dog": 5}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(0)
    text = UMT5EncoderModel(UMT5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    WanPipeline(tokenizer, text, vae, FlowMatchEulerDiscreteScheduler(), transformer).save_pretrained(folder)
    return folder


def teacher(weights: Path, cache: Path, **changes: Any) -> PipelineTeacher:
    usual: dict[str, Any] = {"guidance": Guidance(1.0), "options": {"max_sequence_length": 16}}
    config = PipelineTeacher.Config(str(weights), steps=2, cache=str(cache), **usual | changes)
    return PipelineTeacher.from_recipe(config, 5, VideoStudentSpec(height=16, width=16))


def draws(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_clips_are_sampled_once_and_read_back(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = teacher(weights, tmp_path).clips(PROMPTS, draws(0, 0))
    assert first.shape == (2, 5, 3, 16, 16) and first.min() >= 0 and first.max() <= 1
    assert not torch.equal(first[0], first[1]) and len(list(tmp_path.iterdir())) == 2

    def refuse(path: str) -> Any:
        raise AssertionError("everything is there")

    monkeypatch.setattr("vidalign.teachers.pipeline.load_pipeline", refuse)
    again = teacher(weights, tmp_path)
    assert torch.equal(again.clips(PROMPTS, draws(7, 8)), first)
    again.file(PROMPTS[1], 0).unlink()
    with pytest.raises(AssertionError, match="everything is there"):
        again.clips(PROMPTS, draws(0, 0))


def test_a_lost_clip_is_sampled_again_to_the_same_pixels(weights: Path, tmp_path: Path) -> None:
    """Resuming in the middle, in another order, gives the same clips."""
    whole = teacher(weights, tmp_path / "a").clips(PROMPTS, draws(0, 0))
    other = teacher(weights, tmp_path / "b").clips(PROMPTS[::-1], draws(0, 0))
    assert torch.equal(whole, other.flip(0))


def test_several_clips_of_a_prompt(weights: Path, tmp_path: Path) -> None:
    one = teacher(weights, tmp_path, per_prompt=2)
    found = torch.cat([one.clips(PROMPTS[:1], draws(seed)) for seed in range(8)])
    assert len(list(tmp_path.iterdir())) == 2 and len({float(clip.sum()) for clip in found}) == 2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What pipelines are asked, call by call."""
    from diffusers import WanPipeline

    calls: list[dict[str, Any]] = []
    plain = WanPipeline.__call__

    def call(self: Any, **given: Any) -> Any:
        calls.append(given)
        return plain(self, **given)

    monkeypatch.setattr(WanPipeline, "__call__", call)
    return calls


def test_clips_are_sampled_in_batches(weights: Path, tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    """Each clip has its own noise: it is that of a pipeline that makes one at a time, to rounding."""
    prompts = [*PROMPTS, "a cat a dog"]
    alone = teacher(weights, tmp_path / "a").clips(prompts, draws(0, 0, 0))
    several = teacher(weights, tmp_path / "b", batch=2)
    asked.clear()
    assert (several.clips(prompts, draws(0, 0, 0)) - alone).abs().max() <= 1.01 / 255
    assert [call["prompt"] for call in asked] == [prompts[:2], prompts[2:]]
    assert not torch.equal(alone[0], alone[2])


def test_guidance_reaches_the_pipeline(weights: Path, tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    plain = teacher(weights, tmp_path, batch=2).clips(PROMPTS, draws(0, 0))
    one = teacher(weights, tmp_path, batch=2, guidance=Guidance(9.0, "a dog"))
    asked.clear()
    made = one.clips(PROMPTS, draws(0, 0))
    assert [(call["guidance_scale"], call["negative_prompt"]) for call in asked] == [(9.0, ["a dog", "a dog"])]
    assert not torch.equal(made, plain) and len(list(tmp_path.iterdir())) == 4
    assert teacher(weights, tmp_path, guidance=None).call.keys().isdisjoint({"guidance_scale", "negative_prompt"})


def test_it_leaves_once_its_clips_are_cached(weights: Path, tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    one = teacher(weights, tmp_path, per_prompt=2, batch=3)
    one.prepare([*PROMPTS, PROMPTS[0]])
    assert one._pipeline is None and len(list(tmp_path.iterdir())) == 4
    assert [call["prompt"] for call in asked] == [["a cat", "a cat", "a dog"], ["a dog"]]
    assert one.clips(PROMPTS, draws(0, 1)).shape == (2, 5, 3, 16, 16) and one._pipeline is None
    one.clips(["a cat a dog"], draws(0))
    assert one._pipeline is not None and len(asked) == 3, "a prompt that was not prepared is sampled when it is needed"


def test_its_clips_are_made_before_the_student(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the training prompts alone; training asks the pipeline for nothing more."""
    spec = {"transformer": TRANSFORMER, "text": {"name": "world"}, "height": 16, "width": 16}
    VideoStudent.from_spec(VideoStudentSpec.from_dict(spec)).save(tmp_path / "student.safetensors")
    own = {"path": str(weights), "cache": str(tmp_path / "clips"), "steps": 1, "options": OPTIONS}
    recipe = {
        "student": {"path": str(tmp_path / "student.safetensors")},
        "objective": {"name": "sft"},
        "teacher": {"name": "pipeline", **own},
        "data": {"frames": 3, "prompts": str(tmp_path / "prompts.txt"), "eval_prompts": str(tmp_path / "other.txt")},
        "evaluation": {"frames": 3},
        "trainer": {"steps": 2, "prompts_per_step": 2},
        "tracking": {"tensorboard": False, "panel": "none", "clips_every": 0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    (tmp_path / "other.txt").write_text("a bird", encoding="utf-8")
    plain, loaded = VideoStudent.load, []

    def load(*given: Any, **options: Any) -> VideoStudent:
        loaded.append(len(list((tmp_path / "clips").iterdir())))
        return plain(*given, **options)

    monkeypatch.setattr(VideoStudent, "load", load)
    trainer = Trainer(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert loaded == [2] and trainer.ctx.teacher._pipeline is None
    monkeypatch.setattr(trainer.ctx.teacher, "_build", lambda: pytest.fail("everything is there"))
    trainer.train_step()


def test_on_an_accelerator_one_part_at_a_time_is_there() -> None:
    asked: list[Any] = []
    one = SimpleNamespace(
        model_cpu_offload_seq="text_encoder->transformer->vae",
        enable_model_cpu_offload=lambda device: asked.append(device),
        to=lambda device: asked.append(("whole", device)),
    )
    place = torch.device("cuda", 1)
    assert offloaded(one, place) is one and asked == [place]
    one.model_cpu_offload_seq = None
    offloaded(one, place)
    assert asked[1:] == [("whole", place)]


def test_other_settings_are_other_clips(weights: Path, tmp_path: Path) -> None:
    made = [teacher(weights, tmp_path), teacher(weights, tmp_path)]
    made[1].call["num_inference_steps"] = 3
    assert made[0].file("a cat", 0) != made[1].file("a cat", 0) != made[1].file("a cat", 1)


def test_the_cache_is_a_clip_store(weights: Path, tmp_path: Path) -> None:
    first = teacher(weights, tmp_path).clips(PROMPTS, draws(0, 0))
    store = ClipStore(tmp_path, SHAPE)
    assert sorted(store.prompts) == PROMPTS and torch.equal(store.clips(PROMPTS, draws(1, 2)), first)


def test_an_interrupted_or_short_clip_is_not_kept(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 frames, the student's clips have 5"):
        made = teacher(weights, tmp_path)
        made.call["num_frames"] = 1
        made.clips(PROMPTS[:1], draws(0))
    assert not list(tmp_path.iterdir())


def test_a_pipeline_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pipeline(str(tmp_path))
