"""From a public checkpoint to a student, a run and back: what leaves opens elsewhere and computes the same."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from real_student import ADAPTER, output, prepare, train
from run_helpers import vidalign
from safetensors.torch import load_file
from tiny_wan import assert_equal, network, stored, weights

from vidalign import registry
from vidalign.students.rounding import rounding
from vidalign.students.video.importers.names import rename

LAYERS = 2 * 10
"""Linear layers in the two blocks."""
TARGETS = {"blocks": "blocks", "all": "['*']"}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of this module, with two runs: adapters in the blocks, and on every linear layer."""
    made = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
        patch.chdir(made)
        prepare(made)
        for name, targets in TARGETS.items():
            assert train(name, ADAPTER.replace("TARGETS", targets)) == 0
        yield made


def trained(run: str = "blocks") -> WanTransformer3DModel:
    """The network of a run, its adapter merged by vidalign."""
    made = network()
    made.load_state_dict(load_file(f"{run}/student.safetensors"))
    return made


def export(run: str, form: str, *more: str) -> Path:
    out = Path("out") / run / form / str(len(list(Path().glob("out/*/*/*"))))
    out = out.with_suffix(".safetensors") if form in ("single", "original") else out
    assert vidalign("export", run, "--to", form, "--out", str(out), *more) == 0
    return out


def pipeline() -> WanPipeline:
    return WanPipeline.from_pretrained("base")


def loaded(made: torch.nn.Module) -> list[torch.Tensor]:
    return [value for name, value in made.named_parameters() if "lora_" in name]


def assert_trained(made: WanTransformer3DModel, run: str) -> None:
    """The network computes what the run's student does, and that is not what it was trained from."""
    torch.testing.assert_close(output(made), output(trained(run)), atol=1e-5, rtol=0)
    assert (output(trained(run)) - output(network())).abs().max() > 1e-2


# --- export ---


def test_a_diffusers_folder_is_loaded_by_the_network_and_the_pipeline() -> None:
    folder = export("blocks", "diffusers")
    assert_equal(stored(folder), trained().state_dict())
    assert_trained(WanTransformer3DModel.from_pretrained(folder / "transformer"), "blocks")
    pipe = WanPipeline.from_pretrained(folder)
    assert_trained(pipe.transformer, "blocks")
    assert pipe("red ball", height=32, width=32, num_frames=5, num_inference_steps=1, output_type="pt").frames.shape[1:]


def test_an_exported_folder_is_a_student_again(capfd: pytest.CaptureFixture[str]) -> None:
    """In 16 bits with what that does to the update, by tensors of run and start under the same names."""
    folder = export("blocks", "diffusers", "--dtype", "bfloat16")
    before = {name.removeprefix("transformer."): x for name, x in network().state_dict().items()}
    found = rounding(before, trained().state_dict().items(), torch.bfloat16)
    assert found is not None and 0 < found.error < 0.5, "steps of this size survive"
    assert f"{100 * found.lost:.1f} % of the update is lost by rounding to bfloat16" in capfd.readouterr().err
    assert_equal(stored(folder), {k: v.bfloat16() for k, v in trained().state_dict().items()})
    assert json.loads((folder / "vidalign.json").read_text())["made"]["recipe"] == "recipe.yaml"
    assert vidalign("validate", "recipe.yaml", f"student.path={folder}", "--plugin", "brightness.py") == 0


def test_original_names_come_back_bit_for_bit() -> None:
    """Import, export, compare: of the imported folder, and of a run."""
    assert_equal(load_file(export("student", "original")), weights(network()))
    file = export("blocks", "original")
    assert_equal({rename(name): value for name, value in load_file(file).items()}, trained().state_dict())
    again = ("import", "self_forcing", "--checkpoint", str(file), "--base", "base", "--height", "32", "--width", "32")
    assert vidalign(*again, "--out", "again") == 0
    assert_equal(stored(Path("again")), trained().state_dict())


def test_a_single_file_keeps_the_specification() -> None:
    file = export("student", "single")
    assert_equal(load_file(file), network().state_dict())
    assert vidalign("validate", "recipe.yaml", f"student.path={file}", "--plugin", "brightness.py") == 0


@pytest.mark.parametrize("run", TARGETS)
@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "original/lora.safetensors", None])
def test_a_pipeline_loads_every_tensor_of_a_lora(run: str, name: str | None) -> None:
    count = LAYERS + (6 if run == "all" else 0)
    folder, pipe = export(run, "lora"), pipeline()
    options = {} if name is None else {"weight_name": name}
    pipe.load_lora_weights(str(folder), **options)
    assert len(loaded(pipe.transformer)) == 2 * count
    assert_trained(pipe.transformer, run)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert not loaded(pipe.transformer)
    assert_trained(pipe.transformer, run)


@pytest.mark.parametrize("run", TARGETS)
def test_peft_loads_every_tensor_of_a_lora(run: str) -> None:
    count = LAYERS + (6 if run == "all" else 0)
    folder = export(run, "lora")
    made = peft.PeftModel.from_pretrained(network(), str(folder))
    assert len(loaded(made)) == 2 * count
    torch.testing.assert_close(output(made), output(trained(run)), atol=1e-5, rtol=0)
    assert_trained(made.merge_and_unload(), run)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "student"


def test_the_student_of_a_checkpoint_leaves_too() -> None:
    folder, last = export("blocks", "lora", "--step", "1"), export("blocks", "lora")
    first, second = (load_file(f / "adapter_model.safetensors") for f in (folder, last))
    assert first.keys() == second.keys() and any(not torch.equal(first[k], second[k]) for k in first)
    made = peft.PeftModel.from_pretrained(network(), str(folder))
    file = export("blocks", "original", "--step", "1")
    other = network()
    other.load_state_dict({rename(name): value for name, value in load_file(file).items()})
    torch.testing.assert_close(output(made), output(other), atol=1e-5, rtol=0)


def test_what_would_not_compute_what_was_trained_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("full") == 0
    capsys.readouterr()
    assert vidalign("export", "full", "--to", "lora") == 2
    assert "there is no LoRA to export - --to - all weights were trained" in capsys.readouterr().err
    assert vidalign("export", "student", "--to", "lora") == 2
    assert vidalign("export", "full", "--to", "diffuser") == 2
    assert "did you mean 'diffusers'" in capsys.readouterr().err
    assert vidalign("export", "--to", "diffusers") == 2
    assert "no run is named" in capsys.readouterr().err
    assert vidalign("export", "blocks", "--to", "diffusers", "--out", "student") == 2
    assert "student exists already" in capsys.readouterr().err
    assert vidalign("export", "blocks", "--to", "original", "--out", "x.pt") == 2
    assert "end the file name in .safetensors" in capsys.readouterr().err


def test_a_student_that_predicts_x0_stays_with_vidalign(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("x0", "~student.path", "student.init={" + X0 + "}", "rewards={brightness: 1}") == 0
    for form in ("diffusers", "original", "lora"):
        assert vidalign("export", "x0", "--to", form) == 2
        assert "takes the network's output for the velocity" in capsys.readouterr().err
    assert vidalign("export", "x0") == 0


X0 = (
    "transformer: {patch_size: [1, 8, 8], num_attention_heads: 2, attention_head_dim: 16, in_channels: 3, "
    "out_channels: 3, text_dim: 64, freq_dim: 16, ffn_dim: 32, num_layers: 1}, prediction: x0"
)


# --- the hub ---


class Hub:
    """Keeps what is uploaded."""

    files: dict[str, Any] = {}

    def create_repo(self, name: str, exist_ok: bool) -> str:
        return f"https://huggingface.co/{name}"

    def upload_folder(self, repo_id: str, folder_path: Path, ignore_patterns: list[str]) -> None:
        from huggingface_hub.utils import filter_repo_objects

        names = [str(p.relative_to(folder_path)) for p in folder_path.rglob("*") if p.is_file()]
        self.files |= dict.fromkeys(filter_repo_objects(names, ignore_patterns=ignore_patterns), b"")

    def upload_file(self, repo_id: str, path_or_fileobj: Any, path_in_repo: str) -> None:
        self.files[path_in_repo] = path_or_fileobj


def test_an_export_is_pushed_with_a_card(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    export("blocks", "diffusers", "--push", "me/student")
    assert "https://huggingface.co/me/student" in capsys.readouterr().out
    parts = {"config.json", "diffusion_pytorch_model.safetensors"}
    assert Hub.files.keys() == {"README.md", "vidalign.json", *(f"transformer/{name}" for name in parts)}
    card = Hub.files["README.md"].decode()
    for text in ("base_model:", "recipe: recipe.yaml", "brightness", "it is tiny.", "## Licence", "license: other"):
        assert text in card
    assert vidalign("export", "blocks", "--push", "no name") == 2
    assert "is no name of a repository" in capsys.readouterr().err


def test_a_hub_that_refuses_leaves_the_export(capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("export", "blocks", "--to", "lora", "--out", "kept", "--push", "me/student") == 3
    assert "the export is written, and was not uploaded" in capsys.readouterr().err
    assert Path("kept/adapter_config.json").is_file()


# --- student.path and its keys ---


def test_a_teacher_may_be_a_folder_too(capsys: pytest.CaptureFixture[str]) -> None:
    dmd = ("objective={name: dmd}", "teacher={name: model, path: student}", "rewards={}")
    assert train("dmd", *dmd, "trainer.steps=1") == 0
    assert "override 4 (public.pt) - it carries no specification" in refused(capsys, *dmd, "teacher.path=public.pt")


def refused(capsys: pytest.CaptureFixture[str], *changes: str) -> str:
    capsys.readouterr()
    assert vidalign("validate", "recipe.yaml", "--plugin", "brightness.py", *changes) == 2
    return capsys.readouterr().err


def test_a_public_checkpoint_is_answered_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = "run `vidalign import PRESET --checkpoint public.pt --out DIR`"
    assert command in refused(capsys, "student.path=public.pt")
    assert "not a student of vidalign" in refused(capsys, "student.path=base")


def test_a_hub_id_is_said_and_read_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vidalign("validate", "recipe.yaml", "--plugin", "brightness.py", "student.path=owner/student") == 0
    assert "owner/student is taken as a hub id" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert train("offline", "student.path=owner/student") == 3
    assert "the hub cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: str(Path("student", file)))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: str(Path("student")))
    assert train("cached", "student.path=owner/student", ADAPTER.replace("TARGETS", "blocks")) == 0
    assert_equal(load_file("cached/student.safetensors"), load_file("blocks/student.safetensors"))


def test_a_repository_of_checkpoints_is_answered_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Api:
        def list_repo_files(self, name: str) -> list[str]:
            return ["README.md", "checkpoints/self_forcing_dmd.pt"]

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: str(Path("base")))
    assert train("repository", "student.path=gdhe17/Self-Forcing") != 0
    expected = "vidalign import PRESET --checkpoint gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt --out DIR"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("student.preset=causal_forcing_frame",), "weights of self_forcing cannot be used as causal_forcing_frame"),
        (("student.preset=self_forcin",), "did you mean 'self_forcing'?"),
        (("student.cache={chunk_frames: 1}",), "weights of self_forcing cannot make chunks of 1"),
        (("student.preset=longlive", "student.cache={sink: 6}"), "a sink of 6 frames is longer than a chunk of 3"),
        (("student.height=40",), "height is 40, not a multiple of 16"),
        (("student.fps=0",), "fps is 0"),
        (("student.numerics=wa",), "did you mean 'wan'?"),
        (("student.dtype=bfloat16",), "weights of bfloat16 cannot be trained"),
        (("student.dtype=bfloat16",), "add engine.precision=bf16"),
        (("data.frames=4",), "a video of 4 frames is not whole chunks"),
        (("data.frames=1026",), "past the rotary table of 1024 entries"),
    ],
)
def test_a_change_that_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str], changes: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *changes)


def test_the_recipe_changes_the_specification() -> None:
    changes = (
        "student.preset=reward_forcing",
        "student.numerics=wan",
        "student.fps=24",
        "student.height=16",
        "student.text={name: transformers, path: base, subfolder: text_encoder, length: 8}",
    )
    assert train("changed", *changes, ADAPTER.replace("TARGETS", "blocks"), "trainer.steps=1") == 0
    spec = json.loads((export("changed", "diffusers") / "vidalign.json").read_text())["spec"]
    assert (spec["preset"], spec["numerics"], spec["fps"], spec["height"]) == ("reward_forcing", "wan", 24, 16)
    assert spec["cache"]["sink_decay"] == 0.999 and spec["text"]["length"] == 8


def test_a_base_of_bfloat16_trains_an_adapter_that_is_not_lost_to_rounding() -> None:
    """The merged update is in fp32: of a bf16 base, 8 bits would keep almost none of it."""
    small = ("trainer.learning_rate=1.0e-6", "trainer.steps=1", ADAPTER.replace("TARGETS", "blocks"))
    assert train("bf16", "student.dtype=bfloat16", "engine.precision=bf16", *small) == 0
    merged, adapter = load_file("bf16/student.safetensors"), load_file("bf16/adapter/adapter_model.safetensors")
    name = "blocks.0.attn1.to_q"
    down, up = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    start = network().bfloat16().state_dict()[f"{name}.weight"].float()
    assert up.abs().max() > 0
    torch.testing.assert_close(merged[f"{name}.weight"] - start, 2 * up @ down, atol=1e-7, rtol=1e-2)
    assert (2 * up @ down).abs().max() > 1e-6


def test_a_kept_lora_is_gone_on_from(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the start of the run, and the export is the whole difference to the base."""
    lora = export("blocks", "lora")
    options = (
        "--checkpoint",
        "public.pt",
        "--base",
        "base",
        "--height",
        "32",
        "--width",
        "32",
        "--out",
        "kept-student",
    )
    assert (
        vidalign(
            "import", "self_forcing", *options, "--lora", str(lora / "original" / "lora.safetensors"), "--keep-lora"
        )
        == 0
    )
    said = capsys.readouterr().out.partition("go on with ")[2].splitlines()[0]
    changes = shlex.split(said)
    assert train("further", *changes, "trainer.learning_rate=1.0e-9") == 0
    assert_trained(trained("further"), "blocks")
    assert_equal(stored(Path("kept-student")), network().state_dict())
    made = peft.PeftModel.from_pretrained(network(), str(export("further", "lora")))
    torch.testing.assert_close(output(made), output(trained("further")), atol=1e-5, rtol=0)
    for wrong, message in (
        ("rank: 2", "rank is 2, that of the adapter to start from is 4"),
        ("start: base", "no adapter"),
    ):
        key = wrong.partition(":")[0]
        changed = [re.sub(rf"{key}: [^,}}]+", wrong, change) for change in changes]
        assert message in refused(capsys, *changed)
    assert train("other-layers", changes[0], re.sub(r"targets: .*\]", "targets: [attn1.to_q]", changes[1])) == 3
    assert "the adapter to start from is on other layers" in capsys.readouterr().err
