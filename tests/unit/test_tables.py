"""Tables as users have them: every format, strings as they are written, broken rows by name."""

from __future__ import annotations

import bz2
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from vidalign.build import build_prompts
from vidalign.data.examples import Example
from vidalign.data.source import open_source
from vidalign.errors import DataError, RecipeError
from vidalign.recipe import load_recipe
from vidalign.students.chat import ChatEncoder
from vidalign.students.language_config import ChatConfig

STRINGS = [
    "007",
    "3.10",
    "100000",
    "None",
    "NA",
    "true",
    "null",
    "1e5",
    "2024-01-31",
    "2024-01-31 10:00:00",
    "NaN",
    " x ",
]
"""What a reader that guesses types changes."""


def examples(source: Any) -> list[Example]:
    found: list[Example] = open_source(source, 0).first(1000)
    return found


def rows() -> list[dict[str, str]]:
    return [{"prompt": f"q{n}", "answer": text} for n, text in enumerate(STRINGS)]


def lines() -> str:
    return "".join(json.dumps(row) + "\n" for row in rows())


def separated(by: str) -> str:
    return "\n".join([f"prompt{by}answer", *(f"q{n}{by}{text}" for n, text in enumerate(STRINGS))])


FILES: dict[str, Callable[[Path], Any]] = {
    "t.csv": lambda path: path.write_text(separated(",")),
    "t.tsv": lambda path: path.write_text(separated("\t") + "\n"),
    "windows.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + separated(",").replace("\n", "\r\n").encode()),
    "t.jsonl": lambda path: path.write_text(lines()),
    "t.ndjson": lambda path: path.write_text(lines().strip()),
    "t.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines().encode())),
    "t.csv.bz2": lambda path: path.write_bytes(bz2.compress(separated(",").encode())),
    "t.json": lambda path: path.write_text(json.dumps(rows(), indent=1)),
    "data.json": lambda path: path.write_text(json.dumps({"version": "1", "data": rows()})),
    "lines.json": lambda path: path.write_text(lines()),
    "t.parquet": lambda path: datasets.Dataset.from_list(rows()).to_parquet(str(path)),
    "saved": lambda path: datasets.Dataset.from_list(rows()).save_to_disk(str(path)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_string_is_that_string(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    found = examples(str(tmp_path / name))
    assert [(one.prompt, one.answer) for one in found] == [(f"q{n}", text) for n, text in enumerate(STRINGS)]


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl.gz", "train.parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_string_is_that_string_in_a_folder_too(name: str, streaming: bool, tmp_path: Path) -> None:
    FILES[name.replace("train", "t")](tmp_path / name)
    found = examples({"name": "datasets", "source": f"{tmp_path}:train", "streaming": streaming})
    assert [one.answer for one in found] == STRINGS


def test_numbers_keep_their_digits_and_other_values_are_json(tmp_path: Path) -> None:
    values = '[{"prompt": "a", "answer": 3.10}, {"prompt": "b", "answer": 100000000000000000001}, '
    values += (
        '{"prompt": "c", "answer": true}, {"prompt": "d", "answer": null}, {"prompt": "e", "answer": ["x", 1.50]}]'
    )
    (tmp_path / "t.json").write_text(values)
    found = [one.answer for one in examples(str(tmp_path / "t.json"))]
    assert found == ["3.10", "100000000000000000001", "true", "", '["x", 1.5]']


def test_numbers_are_numbers_in_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "a", "level": 3, "share": 0.50, "tags": ["x"], "hard": true}\n')
    (example,) = examples(str(tmp_path / "t.jsonl"))
    assert example.metadata == {"level": 3, "share": 0.5, "tags": ["x"], "hard": True}
    again = pickle.loads(pickle.dumps(example))
    assert again.metadata == example.metadata and str(again.metadata["share"]) == "0.50"


def repository(folder: Path) -> Path:
    """A folder with two configurations."""
    for name in ("main", "other"):
        (folder / name).mkdir(parents=True)
        content = "".join(json.dumps({"prompt": f"{name} {n}", "answer": "007"}) + "\n" for n in range(4))
        (folder / name / "train.jsonl").write_text(content)
    files = "".join(f"- config_name: {n}\n  data_files: {n}/train.jsonl\n" for n in ("main", "other"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    return folder


def test_configurations_and_splits_are_named(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    assert [one.prompt for one in examples(f"datasets:{repo}:other:train")] == [f"other {n}" for n in range(4)]
    assert [one.prompt for one in examples(f"datasets:{repo}:main:train[1:3]")] == ["main 1", "main 2"]
    for source, message in (
        (f"datasets:{repo}:train", "Config name is missing. .*'main', 'other'"),
        (f"datasets:{repo}:mian:train", "'mian' not found. Available: .*'main', 'other'"),
        (f"datasets:{repo}:main:tran", "no split 'tran' - .* - splits: train - did you mean 'train'"),
        ("datasets:a:b:c:d", "names no data set"),
    ):
        with pytest.raises(DataError, match=message):
            examples(source)


def test_a_saved_data_set_with_splits(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(rows())
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(str(tmp_path / "saved"))
    assert len(examples(f"datasets:{tmp_path}/saved:test")) == 1
    assert len(examples(f"datasets:{tmp_path}/saved")) == len(STRINGS)
    with pytest.raises(DataError, match="no split 'tset' - .* - splits: train, test - did you mean 'test'"):
        examples(f"datasets:{tmp_path}/saved:tset")
    with pytest.raises(DataError, match="name one of its splits, .*/saved/train"):
        examples(str(tmp_path / "saved"))
    assert len(examples(f"{tmp_path}/saved/train")) == len(STRINGS), "as it says"
    assert len(examples(f"datasets:{tmp_path}/saved:train[2:5]")) == 3


def test_a_stream_depends_on_seed_and_number_only(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    chosen = {"name": "datasets", "source": f"{repo}:main:train", "streaming": True}
    ahead, back = open_source(chosen, 3), open_source(chosen, 3)
    forward = [ahead[n].prompt for n in range(12)]
    assert back[11].prompt == forward[11] and [back[n].prompt for n in range(12)] == forward
    assert all(sorted(forward[k : k + 4]) == [f"main {n}" for n in range(4)] for k in (0, 4, 8)), "whole epochs"
    assert len({tuple(forward[k : k + 4]) for k in (0, 4, 8)}) > 1, "each in an order of its own"
    assert forward != [open_source(chosen, 5)[n].prompt for n in range(12)]
    assert [one.prompt for one in back.first(2)] == ["main 0", "main 1"] and back[0].answer == "007"


# --- columns ---


def told(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tokens/opd", list(overrides))
    return str(caught.value)


def test_columns_are_mapped_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"question": "1 + 1", "solution": "2", "level": "easy"}\n')
    columns = "data.columns={prompt: question, answer: solution}"
    recipe = load_recipe("tokens/opd", [f"data.prompts={tmp_path}/t.jsonl", columns, "rewards.exact_match=1"])
    example = build_prompts(recipe)[0]
    assert (example.prompt, example.answer, example.metadata) == ("1 + 1", "2", {"level": "easy"})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    again = load_recipe(tmp_path / "recipe.yaml", ["data.columns.answer=level"])
    assert build_prompts(again)[0].answer == "easy", "an override of a written recipe takes effect"
    own = load_recipe(
        "tokens/opd", [f"data.prompts={{name: table, path: {tmp_path}/t.jsonl, columns: {{prompt: level}}}}"]
    )
    assert build_prompts(own)[0].prompt == "easy"


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"question": "1 + 1"}\n')
    table = f"data.prompts={tmp_path}/t.jsonl"
    assert "'promt', which no example has; did you mean 'prompt'" in told(table, "data.columns={promt: question}")
    assert "data.columns has no effect" in told("data.columns={prompt: question}")
    for columns, message in (
        ({"prompt": "qestion"}, r"data.columns.prompt\) - columns: question - did you mean 'question'"),
        ({}, r"no column 'prompt' - .* - columns: question - .*data.columns=\{prompt: NAME\}"),
    ):
        with pytest.raises(DataError, match=message):
            open_source({"name": "table", "path": str(tmp_path / "t.jsonl"), "columns": columns}, 0)


# --- conversations ---

TURNS = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": [{"type": "text", "text": "1 + 1"}]},
]


def test_a_conversation_is_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": TURNS}) + "\n")
    (example,) = examples(str(tmp_path / "t.jsonl"))
    assert example.prompt == "1 + 1" and example.response == ""
    assert example.before == (("system", "be short"), ("user", "hello"), ("assistant", "hi"))
    assert pickle.loads(pickle.dumps(example)) == example


def test_the_last_answer_of_a_conversation_is_its_response(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "1 + 1"}, {"from": "gpt", "value": "2"}]
    datasets.Dataset.from_list([{"chat": turns}]).to_parquet(str(tmp_path / "t.parquet"))
    (example,) = examples({"name": "table", "path": str(tmp_path / "t.parquet"), "columns": {"prompt": "chat"}})
    assert (example.prompt, example.before, example.response) == ("1 + 1", (), "2")


class Template:
    """A tokenizer that writes nothing."""

    chat_template, pad_token_id = "{{ messages }}", 0


def test_the_chat_has_the_earlier_turns() -> None:
    example = Example("1 + 1", "add", before=(("system", "be short"), ("user", "hello"), ("assistant", "hi")))
    messages = ChatEncoder(Template(), ChatConfig(system="usual", privileged="{prompt} | {privileged}")).messages
    assert messages(example, "add") == [*TURNS[:3], {"role": "user", "content": "1 + 1 | add"}]
    assert messages(Example("q", before=example.before[1:]))[0] == {"role": "system", "content": "usual"}


# --- what cannot be used ---

BROKEN = {
    "broken.jsonl": (b'{"prompt": "a"}\n{"prompt": oops}\n', r"broken.jsonl:2 - Expecting value"),
    "array.jsonl": (b'{"prompt": "a"}\n[1]\n', r"array.jsonl:2"),
    "broken.json": (b'[\n{"prompt": "a"},\n{"prompt": }\n]', r"broken.json:3 - Expecting value"),
    "text.json": (b'"a"', r"text.json"),
    "nothing.json": (b'{"data": []}', "hold no row - .*nothing.json"),
    "deep.jsonl": (b'{"prompt": "a"}\n' + b"[" * 100000, r"deep.jsonl:2"),
    "long.jsonl": (b'{"prompt": "a"}\n{"prompt": ' + b"1" * 5000 + b"}\n", r"long.jsonl:2"),
    "empty.json": (b"", "hold no row - .*empty.json"),
    "empty.jsonl": (b"\n\n", "hold no row - .*empty.jsonl"),
    "empty.csv": (b"", "hold no row - .*empty.csv"),
    "header.csv": (b"prompt,answer\n", "hold no row - .*header.csv"),
    "empty.parquet": (b"", "cannot be read - .*empty.parquet"),
    "noise.parquet": (bytes(range(256)), "cannot be read - .*noise.parquet"),
    "ragged.csv": (b"prompt,answer\nq1,a\nq2,a,b,c\n", r"ragged.csv:3 - 4 and 2"),
    "quotes.csv": (b'prompt,answer\nq1,a\n"q2,a\n', r"quotes.csv:3"),
    "behind.csv": (b'prompt,answer\n"abc"x,1\n', r"behind.csv:2 - ',' expected"),
    "twice.csv": (b"prompt,a,a\nq1,a,b\n", r"twice.csv:1"),
    "latin.csv": ("prompt\nGrüße\n".encode("latin-1"), r"latin.csv - byte 0xfc is no UTF-8"),
    "cut.jsonl.gz": (gzip.compress(lines().encode())[:60], r"cut.jsonl.gz"),
    "plain.jsonl.gz": (lines().encode(), r"plain.jsonl.gz"),
    "null.jsonl": (b'{"prompt": "a"}\n{"prompt": null}\n', "row 1 - the prompt is empty: None"),
    "blank.csv": (b"prompt,answer\na,1\n ,2\n", "row 1 - the prompt is empty"),
    "missing.jsonl": (b'{"prompt": "a"}\n{"answer": "a"}\n', "row 1 - the prompt is empty: None"),
    "number.jsonl": (b'{"prompt": 5}\n', "row 0 - it is neither a text nor a conversation: 5"),
    "record.jsonl": (b'{"prompt": {"a": "b"}}\n', "row 0 - it is neither a text nor a conversation"),
    "turns.jsonl": (b'{"prompt": [{"role": "assistant", "content": "a"}]}\n', "row 0 - .*no last turn of the user"),
    "role.jsonl": (b'{"prompt": [{"content": "a"}]}\n', "row 0 - a turn of the conversation has no role"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_one_line_with_file_and_row(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        examples(str(tmp_path / name))
    assert str(caught.value).count("\n") == 0


def test_a_broken_file_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": oops}\n')
    for streaming in (False, True):
        with pytest.raises(DataError, match="train.jsonl:2"):
            examples({"name": "datasets", "source": str(tmp_path), "streaming": streaming})
    with pytest.raises(DataError, match=f"cannot be read - datasets:{tmp_path}/none"):
        examples(f"datasets:{tmp_path}/none")
