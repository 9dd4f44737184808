"""Can the prompts of a recipe be read, shown by its student and scored by its rewards?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidalign import registry
from vidalign.errors import Problem, UserError
from vidalign.guest import guest
from vidalign.recipe.draft import LANGUAGE, Draft, student_spec
from vidalign.recipe.schema import Choice, StudentConfig

WORLD = "world:"
TABLES = "tokens:train, pictures:train, datasets:NAME or a json, csv or parquet file"


def check_prompts(draft: Draft) -> None:
    recipe = draft.recipe
    sources = {"data.prompts": recipe.data.prompts, "data.eval_prompts": recipe.data.eval_prompts}
    if recipe.evaluation.prompts:
        sources["evaluation.prompts"] = recipe.evaluation.prompts
    before = len(draft.problems)
    if recipe.student.name == LANGUAGE:
        _examples(draft, sources)
    else:
        _captions(draft, sources)
    if len(draft.problems) == before:
        _scored(draft, recipe.data.prompts)


def read_source(source: str) -> list[str]:
    """The prompts of a world split or a text file; raises DataError for what cannot be used."""
    if source.startswith(WORLD):
        from vidalign.world.captions import prompts

        return list(prompts(source.removeprefix(WORLD)))
    from vidalign.data.prompts import read_prompts

    return read_prompts(Path(source))


def unscored(rewards: dict[str, Any], prompts: Iterator[tuple[str, Any]]) -> Problem | None:
    """The problem of the first (place, prompt) that none of the rewards can score; rewards that say nothing score all.

    See `Reward` for ``can_score``.
    """
    if not rewards or not all(hasattr(kind, "can_score") for kind in rewards.values()):
        return None
    for place, prompt in prompts:
        if not any(_can_score(name, kind, prompt) for name, kind in rewards.items()):
            why = f"{' and '.join(rewards)} know no answer for it: {str(getattr(prompt, 'prompt', prompt))[:60]!r}"
            fix = "leave it out, or add a reward that can"
            return Problem("no reward of the recipe can score a prompt", place, why, fix)
    return None


def _can_score(name: str, kind: Any, prompt: Any) -> bool:
    with guest("reward", name, kind):
        return bool(kind.can_score(prompt))


def weighted(objective: Choice, rewards: dict[str, float]) -> dict[str, Any]:
    """The rewards that an objective trains on: its own of a mixture, or the recipe's; those of weight 0 are logged."""
    chosen = getattr(objective, "rewards", None) or rewards
    return {name: registry.get("rewards", name) for name, weight in chosen.items() if weight}


def _scored(draft: Draft, source: str) -> None:
    """A reward can score every training prompt; the examples of a hub are not read."""
    try:
        rewards = weighted(draft.recipe.objective, draft.recipe.rewards)
    except UserError:
        return  # told with the rewards
    try:
        problem = unscored(rewards, _placed_prompts(draft, source))
    except UserError as error:
        draft.pass_on(error, "data.prompts")
        return
    if problem is not None:
        problem.where = f"{draft.tree.locate('data.prompts')} ({problem.where})"
        draft.problems.append(problem)


def _placed_prompts(draft: Draft, source: str) -> Iterator[tuple[str, Any]]:
    """(place, prompt) of the captions of a split or a file, or of the examples of a local table."""
    if draft.recipe.student.name != LANGUAGE:
        world = source.startswith(WORLD)
        lines = read_source(source) if world else Path(source).read_text(encoding="utf-8").splitlines()
        yield from ((f"{source}:{n}", line.strip()) for n, line in enumerate(lines, start=1) if line.strip())
        return
    from vidalign.data.language import FILES, TableExamples, open_examples

    if Path(source).suffix in FILES:
        examples = open_examples(source, 0, "none")
        assert isinstance(examples, TableExamples), "a file is a table"
        yield from examples.questions()


def _captions(draft: Draft, sources: dict[str, str]) -> None:
    """Splits of the embedded world and text files."""
    from vidalign.data.language import is_examples

    for path, source in sources.items():
        if is_examples(source):
            draft.refuse(f"a video student cannot show {source!r}", path, "they are questions for language students",
                         "use world:SPLIT or a text file with one prompt a line")  # fmt: skip
            continue
        try:
            prompts = read_source(source)
        except UserError as error:
            for problem in error.problems:
                problem.fix = problem.fix.replace("the path", path)
            draft.pass_on(error, path)
        else:
            _unknown_words(draft, source, prompts)


def _examples(draft: Draft, sources: dict[str, str]) -> None:
    """Splits of the embedded worlds exist and a table is not a split of the video world; tables are not read."""
    from vidalign.data.language import FILES, check_world, is_examples

    for path, source in sources.items():
        if Path(source).suffix in FILES and not Path(source).is_file():
            draft.refuse(f"there are no examples {source!r}", path, "there is no such file", f"check {path}")
        elif not is_examples(source) and not source.startswith(WORLD):
            draft.refuse(f"there are no examples {source!r}", path, "it is no table", f"name one in {path}: {TABLES}")
        try:
            check_world(source)
        except UserError as error:
            draft.pass_on(error, path)
        if source.startswith(WORLD):
            draft.refuse(f"a language student cannot answer {source!r}", path, "its captions are for video students",
                         "use tokens:train, pictures:train or a table")  # fmt: skip


def _unknown_words(draft: Draft, source: str, prompts: list[str]) -> None:
    if source.startswith(WORLD) or not _reads_world_words(draft.recipe.student):
        return
    from vidalign.world.captions import unknown_words

    words = list(dict.fromkeys(word for prompt in prompts for word in unknown_words(prompt)))
    if words:
        shown = ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
        why = "the student's text encoder reads them as unknown words"
        draft.warnings.append(Problem(f"words outside the world's vocabulary: {shown}", source, why))


def _reads_world_words(student: StudentConfig) -> bool:
    spec = student_spec(student) or {}
    return spec.get("text", {"name": "world"}).get("name") == "world"
