"""Prompt files of video students: text as editors write it, tables with a column of prompts, metadata for rewards."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import vidalign
from vidalign import registry
from vidalign.build import build_prompts
from vidalign.data.captions import Caption, metadata_of
from vidalign.data.prompts import read_prompts
from vidalign.data.source import open_source
from vidalign.errors import DataError, RecipeError
from vidalign.evaluation.evaluator import Evaluator
from vidalign.recipe import load_recipe
from vidalign.rewards.base import CompositeReward

PROMPTS = ["a red ball glides", "a blue box falls"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa red ball glides\na blue box falls\n",
        b"a red ball glides\r\na blue box falls\r\n",
        b"a red ball glides\na blue box falls",
        b"a red ball glides\ra blue box falls\r",
        "a red ball glides\na blue box falls\n".encode("utf-16"),
        b"\n\n  a red ball glides\t\n\na blue box falls\n\n",
    ],
)
def test_text_as_editors_write_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    assert read_prompts(tmp_path / "p.txt") == PROMPTS


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_is_what_an_editor_shows_as_one(inside: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(f"a red{inside}ball\na box\n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == [f"a red{inside}ball", "a box"]


def rows(column: str = "prompt") -> list[dict[str, Any]]:
    return [{column: prompt, "seed": f"00{n}"} for n, prompt in enumerate(PROMPTS)]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    names = list(content[0])
    by = "\t" if ".tsv" in path.name else ","
    text = "\n".join([by.join(names), *(by.join(f'"{row[name]}"' for name in names) for row in content)])
    if ".json" in path.name:
        text = json.dumps(content) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in content)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(content).to_parquet(str(path))
    else:
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def video(prompts: Any, *overrides: str) -> Any:
    return load_recipe("world/sft", [f"data.prompts={prompts}", *overrides])


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.tsv", "p.parquet", "p.csv.gz"])
def test_a_table_of_prompts(name: str, tmp_path: Path) -> None:
    source = build_prompts(video(write(tmp_path / name, rows())))
    assert source.first(9) == [source[0], source[1]] and sorted(source.first(9)) == sorted(PROMPTS)
    assert {str(prompt): metadata_of(prompt) for prompt in source.first(2)} == {
        prompt: {"seed": f"00{n}"} for n, prompt in enumerate(PROMPTS)
    }


def test_a_saved_data_set(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows()).save_to_disk(str(tmp_path / "saved"))
    assert sorted(build_prompts(video(tmp_path / "saved")).first(9)) == sorted(PROMPTS)


def test_the_prompt_files_of_suites(tmp_path: Path) -> None:
    entries = [{"prompt_en": PROMPTS[0], "dimension": ["color"]}, {"prompt_en": PROMPTS[0], "dimension": ["scene"]}]
    (tmp_path / "VBench_full_info.json").write_text(json.dumps(entries))
    (vbench,) = build_prompts(video(tmp_path / "VBench_full_info.json")).first(9)
    assert vbench == PROMPTS[0] and metadata_of(vbench) == {"dimension": ["color"]}, "the first row of a prompt counts"
    videophy = write(tmp_path / "videophy2_test.csv", rows("caption"))
    assert sorted(build_prompts(video(videophy)).first(9)) == sorted(PROMPTS)
    (tmp_path / "MovieGenVideoBench.txt").write_text("\n".join(PROMPTS))
    assert sorted(build_prompts(video(tmp_path / "MovieGenVideoBench.txt")).first(9)) == sorted(PROMPTS)


def test_the_column_is_named_in_the_recipe(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", rows("text"))
    assert sorted(build_prompts(video(file, "data.columns={prompt: text}")).first(9)) == sorted(PROMPTS)
    with pytest.raises(RecipeError, match=r"no column 'prompt' - .*p.csv.* - columns: text, seed"):
        video(file)
    with pytest.raises(RecipeError, match=r"no column 'txt'.* - did you mean 'text'"):
        video(file, "data.columns={prompt: txt}")
    with pytest.raises(RecipeError, match=r"captions are read by their prompt alone.*data.columns.answer"):
        video(file, "data.columns={prompt: text, answer: seed}")


BROKEN = {
    "empty.csv": (b"", "hold no row"),
    "null.jsonl": (b'{"prompt": "a"}\n{"prompt": null}\n', r"null.jsonl, row 1\) - its prompt is None"),
    "broken.jsonl": (b'{"prompt": "a"}\n{"prompt": oops}\n', "broken.jsonl:2"),
    "noise.parquet": (b"noise", "noise.parquet"),
    "half.jsonl": (b'{"prompt": "a"}\n{"prompt": "caf\\udce9"}\n', r"half.jsonl:2\) - it holds half a character"),
    "list.json": (b'[{"prompt": "a", "note": ["caf\\udce9"]}]', r"list.json, row 0\) - it holds half a character"),
}


@pytest.mark.parametrize("name", [*BROKEN, "gone.csv"])
def test_what_cannot_be_used_is_refused_by_validate(name: str, tmp_path: Path) -> None:
    content, message = BROKEN.get(name, (None, "there is no such file"))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        video(tmp_path / name)
    assert str(caught.value).count("\n") == 0


def test_a_caption_is_its_text() -> None:
    caption = Caption("a cat", {"level": 3})
    assert caption == "a cat" and {caption: 1}["a cat"] == 1 and metadata_of("a cat") == {}
    again = pickle.loads(pickle.dumps(caption))
    assert again == caption and metadata_of(again) == {"level": 3}


# --- rewards ---


class Informed:
    """Asks for the metadata."""

    name = "informed"
    judges = "clips"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def score(
        self, clips: torch.Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, torch.Tensor]:
        self.seen += [(str(prompt), dict(one)) for prompt, one in zip(prompts, metadata, strict=True)]
        return {self.name: clips.flatten(1).mean(1)}


class Plain(Informed):
    name = "plain"

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {self.name: clips.flatten(1).mean(1)}


def test_only_rewards_that_ask_are_given_metadata() -> None:
    informed = Informed()
    rewards = CompositeReward({"informed": informed, "plain": Plain()}, {"informed": 1.0, "plain": 1.0})
    rewards.score(torch.rand(2, 1, 3, 4, 4), [Caption("a", {"seed": "007"}), "b"])
    assert informed.seen == [("a", {"seed": "007"}), ("b", {})]


def test_metadata_travel_from_the_file_to_the_reward(tmp_path: Path) -> None:
    """Through rollout, groups and judgement of a training step, and through the evaluation."""
    made: list[Informed] = []

    @registry.register("rewards", "informed")
    class Kept(Informed):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    file = write(
        tmp_path / "p.csv", [{"prompt": f"a large {colour} circle falls", "seed": colour} for colour in ("red", "blue")]
    )
    changes = ["trainer.steps=1", "trainer.prompts_per_step=2", "objective.group_size=2", "tracking.panel=none"]
    changes += [f"data.prompts={file}", f"data.eval_prompts={file}", "evaluation.count=2", "evaluation.metrics={}"]
    try:
        recipe = load_recipe("world/diffusion_nft", [*changes, "rewards={informed: 1.0}"])
        trainer = vidalign.Trainer(recipe, tmp_path / "run")
        trainer.train_step()
        seen = made[-1].seen
        assert len(seen) >= 4 and all(one == {"seed": prompt.split()[2]} for prompt, one in seen)
        made[-1].seen.clear()
        Evaluator.from_recipe(recipe, trainer.ctx.rewards)(lambda prompts, _: torch.rand(len(prompts), 2, 3, 4, 4))
        assert {one["seed"] for _, one in made[-1].seen} == {"blue", "red"}
    finally:
        registry.unregister("rewards", "informed")


def test_a_text_file_and_a_table_of_the_same_prompts_are_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    table, text = write(tmp_path / "p.csv", rows()), tmp_path / "p.txt"
    assert [build_prompts(video(table))[n] for n in range(8)] == [build_prompts(video(text))[n] for n in range(8)]


def test_a_source_of_examples_is_still_no_source_of_captions() -> None:
    with pytest.raises(RecipeError, match="a video student cannot use 'tokens:train'"):
        video("tokens:train")
    with pytest.raises(DataError, match="there is no such file"):
        open_source({"name": "caption_table", "path": "gone.csv"}, 0)
