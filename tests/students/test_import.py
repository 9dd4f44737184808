"""Import of public checkpoints: forms of files, names, sizes, what is refused."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_wan
import torch
from diffusers import WanTransformer3DModel
from huggingface_hub.errors import EntryNotFoundError
from omegaconf import OmegaConf
from safetensors.torch import save_file
from tiny_wan import assert_equal, imported, save, stored

from vidalign.errors import CheckpointError, UserError
from vidalign.students import hub, streamed
from vidalign.students.exchange import ImportOptions
from vidalign.students.video.importers import files
from vidalign.students.video.importers.convert import import_checkpoint
from vidalign.students.video.importers.names import original, rename
from vidalign.students.video.importers.shapes import infer_config
from vidalign.students.video.presets import preset
from vidalign.students.weights import kind_of


@pytest.fixture(scope="module")
def network() -> WanTransformer3DModel:
    return tiny_wan.network()


@pytest.fixture(scope="module")
def expected(network: WanTransformer3DModel) -> dict[str, torch.Tensor]:
    return network.state_dict()


@pytest.fixture(scope="module")
def weights(network: WanTransformer3DModel) -> dict[str, torch.Tensor]:
    return tiny_wan.weights(network)


PREFIXES = [
    "",
    "model.",
    "module.",
    "transformer.",
    "diffusion_model.",
    "model._fsdp_wrapped_module.",
    "model._orig_mod.module.",
    "_fsdp_wrapped_module._checkpoint_wrapped_module.model.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_and_wrappers_are_stripped(tmp_path: Path, weights: dict, expected: dict, prefix: str) -> None:
    path = save(tmp_path / "x.pt", {"generator": {prefix + k: v for k, v in weights.items()}})
    assert_equal(stored(imported(path, tmp_path / "out")), expected)


def test_wrappers_inside_a_name_are_stripped() -> None:
    wrapped = "model.blocks.1._checkpoint_wrapped_module.self_attn._fsdp_wrapped_module.q.weight"
    assert rename(wrapped) == "blocks.1.attn1.to_q.weight"


def test_the_names_are_a_bijection_on_both_networks() -> None:
    """Text-to-video and image-to-video."""
    for more in ({}, {"image_dim": 8, "added_kv_proj_dim": 32}):
        names = tiny_wan.network(**more).state_dict()
        assert [rename(original(name)) for name in names] == list(names)
        assert all(rename(name) == name for name in names)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "sharded", "diffusers", "diffusers sharded", "bf16"])
def test_every_form_of_file_is_read_bit_for_bit(
    tmp_path: Path, network: WanTransformer3DModel, weights: dict, expected: dict, form: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    if form in ("zip", "legacy"):
        save(path, {"generator_ema": weights}, _use_new_zipfile_serialization=form == "zip")
    elif form == "safetensors":
        path = tmp_path / "checkpoint.safetensors"
        save_file(weights, path)
    elif form == "sharded":
        entries = {k: streamed.Entry(tuple(v.shape), v.dtype) for k, v in weights.items()}
        streamed.write_shards(tmp_path / "shards", "model", entries, iter(weights.items()), {}, shard=20_000)
        path = tmp_path / "shards"
        assert len(list(path.glob("*.safetensors"))) > 2
    elif form == "bf16":
        expected = {k: v.bfloat16() for k, v in expected.items()}
        save(path, {k: v.bfloat16() for k, v in weights.items()})
    else:
        path = tmp_path / "pipeline"
        network.save_pretrained(path / "transformer", max_shard_size="20KB" if "sharded" in form else "1GB")
    assert_equal(stored(imported(path, tmp_path / "out")), expected)


def test_what_is_written_is_what_diffusers_reads(
    tmp_path: Path, weights: dict, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed.write_shards, "__defaults__", (20_000,))
    monkeypatch.setattr(files, "WINDOW", 5_000)
    folder = imported(save(tmp_path / "x.pt", weights), tmp_path / "out")
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    read, told = WanTransformer3DModel.from_pretrained(folder / "transformer", output_loading_info=True)
    assert_equal(read.state_dict(), expected)
    assert not told["missing_keys"] and not told["unexpected_keys"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_is_changed_when_asked(tmp_path: Path, weights: dict, expected: dict, dtype: str) -> None:
    folder = imported(save(tmp_path / "x.pt", weights), tmp_path / "out", dtype=dtype)
    assert_equal(stored(folder), {k: v.to(getattr(torch, dtype)) for k, v in expected.items()})


def test_the_part_of_a_file_is_chosen_by_the_preset_or_by_key(tmp_path: Path, weights: dict, expected: dict) -> None:
    other = {k: v + 1 for k, v in weights.items()}
    path = save(tmp_path / "x.pt", {"generator": other, "generator_ema": {"model": weights}, "step": 3})

    def first(out: str, name: str = "self_forcing", **options: Any) -> torch.Tensor:
        return stored(imported(path, tmp_path / out, name, **options))["proj_out.bias"]

    assert torch.equal(first("a"), expected["proj_out.bias"])
    assert torch.equal(first("b", key="generator"), expected["proj_out.bias"] + 1)
    assert torch.equal(first("c", "causal_forcing"), expected["proj_out.bias"] + 1)
    assert torch.equal(first("d", "causal_forcing", key="generator_ema.model"), expected["proj_out.bias"])
    with pytest.raises(CheckpointError, match="no key 'ema'.*generator, generator_ema, step"):
        first("e", key="ema")
    path = save(tmp_path / "early.pt", {"generator": weights, "generator_ema": {}})
    assert torch.equal(first("f"), expected["proj_out.bias"]), "averages that have not begun"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=1e-4, layers=[1, 2], out=Path("/runs")),
        OmegaConf.create({"lr": 1e-4, "layers": [1, {"a": None}]}),
        OmegaConf.create([1, "two"]),
    ],
)
def test_settings_beside_the_weights_do_no_harm(
    tmp_path: Path, weights: dict, expected: dict, beside: Any, legacy: bool
) -> None:
    path = save(tmp_path / "x.pt", {"args": beside, "generator": weights}, _use_new_zipfile_serialization=not legacy)
    assert_equal(stored(imported(path, tmp_path / "out")), expected)


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/vidalign-code-was-run",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, weights: dict, legacy: bool) -> None:
    path = save(tmp_path / "x.pt", {"generator": weights, "x": Code()}, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"holds code and is not read.*posix\.mkdir") as caught:
        imported(path, tmp_path / "out")
    assert "weights_only" not in str(caught.value) and not Path("/tmp/vidalign-code-was-run").exists()


HTML, LFS = b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DAMAGED = [
    ("x.pt", "half", "truncated"),
    ("x.pt", b"", "the file is empty"),
    ("x.pt", HTML, "HTML page"),
    ("x.pt", LFS, "pointer of Git LFS"),
    ("x.pt", b"\x80\x02no pickle", "truncated, or not a file of torch.save"),
    ("legacy.pt", "half", "truncated, or not a file of torch.save"),
    ("x.safetensors", "half", r"truncated: \d+ bytes of \d+"),
    ("x.safetensors", b"", "the file is empty"),
    ("x.safetensors", HTML, "HTML page"),
    ("x.safetensors", LFS, "pointer of Git LFS"),
    ("x.safetensors", b"123", "not a safetensors file"),
    ("x.txt", b"123", "a checkpoint is not read from 'x.txt'"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED)
def test_a_damaged_file_is_one_clear_error(
    tmp_path: Path, weights: dict, name: str, content: bytes | str, message: str
) -> None:
    path = tmp_path / name
    if content == "half":
        if path.suffix == ".safetensors":
            save_file(weights, path)
        else:
            save(path, weights, _use_new_zipfile_serialization=name != "legacy.pt")
        content = path.read_bytes()[: path.stat().st_size // 2]
    assert isinstance(content, bytes)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        imported(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_a_checkpoint_of_something_else_is_named(tmp_path: Path, weights: dict) -> None:
    for n, (content, message) in enumerate(
        (
            ([torch.zeros(1)], "holds a list, not a dictionary"),
            ({"optimizer": {}, "step": 1}, "no weights in the checkpoint.*optimizer, step"),
            ({"generator": {"conv.weight": torch.zeros(1)}}, "not a Wan2.1 checkpoint.*conv.weight"),
        )
    ):
        with pytest.raises(CheckpointError, match=message):
            imported(save(tmp_path / f"{n}.pt", content), tmp_path / "out")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        imported(tmp_path / "nothing.pt", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"does not hold one checkpoint.*0\.pt, 1\.pt, 2\.pt"):
        imported(tmp_path, tmp_path / "out")


def test_loading_is_strict(tmp_path: Path, weights: dict) -> None:
    def refused(changed: dict, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            imported(save(tmp_path / "x.pt", changed), tmp_path / "out")

    refused({k: v for k, v in weights.items() if k != "head.head.bias"}, r"proj_out\.bias")
    refused({**weights, "extra.weight": torch.zeros(1)}, "extra")
    refused({**weights, "head.head.bias": torch.zeros(2)}, r"found \[2\], expected \[64\]")
    refused({**weights, "model.head.head.bias": torch.zeros(64)}, r"two tensors are called 'proj_out\.bias'")


def test_a_missing_shard_is_named(tmp_path: Path, network: WanTransformer3DModel) -> None:
    network.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
    next((tmp_path / "transformer").glob("*-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match="shard .*-00002-of-.* is missing"):
        imported(tmp_path, tmp_path / "out")


def test_nothing_is_left_of_an_import_that_fails(
    tmp_path: Path, weights: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vidalign.students.video.importers.convert.write_description", full)
    path = save(tmp_path / "x.pt", weights)
    with pytest.raises(OSError, match="No space left"):
        imported(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


# --- sizes ---


def test_the_published_sizes_are_read_off_the_shapes() -> None:
    config = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    with torch.device("meta"):
        made = WanTransformer3DModel(**config)
    tensors = made.state_dict()
    assert len(tensors) == 825 and sum(x.numel() for x in tensors.values()) == 1_418_996_800
    found = infer_config({k: tuple(v.shape) for k, v in tensors.items()}, "meta")
    assert all(list(v) == list(made.config[k]) if k == "patch_size" else v == made.config[k] for k, v in found.items())


def test_heads_are_assumed_and_said_unless_base_or_option_say_them(tmp_path: Path) -> None:
    made = tiny_wan.network(num_attention_heads=2, attention_head_dim=64)
    path = save(tmp_path / "x.pt", tiny_wan.weights(made))
    size = {"height": 48, "width": 64}

    def heads(out: str, **options: Any) -> tuple[int, str]:
        result = import_checkpoint("self_forcing", str(path), tmp_path / out, ImportOptions(**size, **options))
        config = json.loads((result.folder / "transformer" / "config.json").read_text())
        return config["num_attention_heads"], " ".join(result.notes)

    count, notes = heads("assumed")
    assert count == 1 and "1 heads of 128 channels are assumed" in notes
    assert heads("option", heads=2)[0] == 2
    base = base_folder(tmp_path / "base")
    made.save_pretrained(base / "transformer")
    count, notes = heads("based", base=str(base))
    assert count == 2 and "assumed" not in notes
    with pytest.raises(CheckpointError, match="3 heads do not divide a width of 128"):
        heads("wrong", heads=3)
    with pytest.raises(CheckpointError, match="width 32 has no whole heads of 128"):
        imported(save(tmp_path / "y.pt", tiny_wan.weights(tiny_wan.network())), tmp_path / "o", heads=0)


def test_an_image_to_video_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", tiny_wan.weights(tiny_wan.network(image_dim=8, added_kv_proj_dim=32)))
    with pytest.raises(UserError, match="added_kv_proj_dim is 32.*text-to-video"):
        imported(path, tmp_path / "out")


@pytest.mark.parametrize(("size", "message"), [({"height": 50}, "height is 50.*use 48"), ({"width": 7}, "use 16")])
def test_sizes_that_are_no_whole_patches_are_refused(tmp_path: Path, weights: dict, size: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        imported(save(tmp_path / "x.pt", weights), tmp_path / "out", **size)


def test_weights_for_other_latents_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", tiny_wan.weights(tiny_wan.network(in_channels=48, out_channels=48)))
    with pytest.raises(UserError, match="48 latent channels do not fit the preset 'self_forcing'"):
        imported(path, tmp_path / "out")


# --- family and base ---


def test_weights_of_a_family_are_not_imported_as_another_with_other_chunks(tmp_path: Path, weights: dict) -> None:
    path = save(tmp_path / "x.pt", weights)
    frames = imported(path, tmp_path / "frames", "causal_forcing_pp_2step")
    with pytest.raises(UserError, match="weights of causal_forcing_pp_2step cannot be used as longlive") as caught:
        imported(frames, tmp_path / "out", "longlive")
    message = str(caught.value)
    assert "cache.chunk_frames is 1, not 3; cache.window is 0, not 12; cache.sink is 0, not 3 and" in message
    assert message.endswith("the nearest preset is causal_forcing_pp_2step")
    assert_equal(stored(imported(frames, tmp_path / "again", "causal_forcing_frame")), stored(frames))


def test_a_checkpoint_without_a_family_is_said(tmp_path: Path, weights: dict) -> None:
    path = save(tmp_path / "x.pt", weights)
    options = ImportOptions(**tiny_wan.OPTIONS)
    first = import_checkpoint("longlive", str(path), tmp_path / "a", options)
    assert any("does not name its family" in note and "taken as longlive" in note for note in first.notes)
    assert "preset longlive: chunks of 3 latents, a window of 12 latents with a sink of 3" in first.notes[0]
    second = import_checkpoint("longlive", str(first.folder), tmp_path / "b", options)
    assert not any("family" in note for note in second.notes)


def base_folder(path: Path) -> Path:
    """The layout of a diffusers pipeline, without weights."""
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        (path / name).mkdir(parents=True)
        (path / name / "config.json").write_text("{}")
    (path / "model_index.json").write_text("{}")
    return path


def test_the_base_is_linked(tmp_path: Path, weights: dict) -> None:
    path, base = save(tmp_path / "x.pt", weights), base_folder(tmp_path / "base")
    folder = imported(path, tmp_path / "out", base=str(base))
    spec = json.loads((folder / "vidalign.json").read_text())["spec"]
    assert spec["codec"]["path"] == spec["text"]["path"] == spec["base"] == str(base.resolve())
    assert (folder / "vae").resolve() == base / "vae" and (folder / "model_index.json").is_file()
    shutil.rmtree(base / "vae")
    with pytest.raises(CheckpointError, match="is no base folder.*there is no vae.*expected: vae/, text_encoder/"):
        imported(path, tmp_path / "other", base=str(base))
    with pytest.raises(CheckpointError, match="there is no such folder"):
        imported(path, tmp_path / "other", base=str(tmp_path / "missing"))


def test_a_hub_id_that_cannot_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt", "gdhe17/Self-Forcing"):
        with pytest.raises(CheckpointError, match="the hub cannot be reached.*hf download"):
            import_checkpoint("self_forcing", name, tmp_path / "out", ImportOptions())


def test_a_file_of_the_hub_is_imported_from_its_cache(
    tmp_path: Path, weights: dict, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.pt", weights)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file: str(path if file == "a/x.pt" else repo))
    made = import_checkpoint("self_forcing", "owner/name/a/x.pt", tmp_path / "out", ImportOptions(**tiny_wan.OPTIONS))
    assert_equal(stored(made.folder), expected)


def test_a_sink_longer_than_a_chunk_is_refused_for_longlive(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    text = Path(preset.__globals__["FOLDER"], "longlive.yaml").read_text().replace("sink: 3", "sink: 6")
    own.write_text(text)
    with pytest.raises(UserError, match="a sink of 6 frames is longer than a chunk of 3"):
        preset(str(own))


@pytest.mark.parametrize("legacy", [False, True])
def test_views_and_shared_storages_are_read_as_they_are(tmp_path: Path, legacy: bool) -> None:
    base = torch.randn(8, 6)
    content = {"a": base[2:4], "b": base.T, "c": base, "d": base[:, 1], "e": torch.arange(3), "f": torch.empty(0, 4)}
    content = {"generator": content, "optimizer": {"state": [torch.zeros(2)]}}
    path = save(tmp_path / "x.pt", content, _use_new_zipfile_serialization=not legacy)
    found = dict(files.open_checkpoint(path, ["generator"]).tensors(list("fedcba")))
    assert_equal({k: found[k].clone() for k in "abcdef"}, {k: v.clone() for k, v in content["generator"].items()})


def test_of_a_pipeline_on_the_hub_only_the_network_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def snapshot(name: str, allow_patterns: list[str], revision: str | None = None) -> str:
        asked.append(allow_patterns)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    (tmp_path / "owner" / "pipeline" / "transformer").mkdir(parents=True)
    assert hub.checkpoint_file("owner/pipeline") == tmp_path / "owner" / "pipeline"
    assert len(asked) == 1 and all(p.startswith("transformer/") or p == "vidalign.json" for p in asked[0])
    assert hub.checkpoint_file("owner/flat") == tmp_path / "owner" / "flat" and "*.safetensors" in asked[-1]


def test_a_student_on_the_hub_is_known_before_anything_of_it_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its description is fetched; a repository without one, or out of reach, is one of transformers."""
    here: dict[str, str] = {}

    def download(name: str, file: str) -> str:
        if name == "owner/video":
            return here.setdefault(name, file)
        raise EntryNotFoundError("none") if name == "owner/text" else OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: here.get(name))
    found = {name: kind_of(f"owner/{name}") for name in ("video", "text", "far")}
    assert found == {"video": "video", "text": "language", "far": "language"} and list(here) == ["owner/video"]
