"""Language objectives say beforehand what they spend: responses through the student and the teacher, as counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from language_objective_helpers import NAMES, examples, make, make_picture_student, make_student
from objective_helpers import BUILT_IN
from objective_helpers import NAMES as VIDEO

from vidalign import registry
from vidalign.bench.budget import Budget
from vidalign.bench.cost import predict
from vidalign.bench.counter import Counter
from vidalign.cost import Cost
from vidalign.errors import RecipeError
from vidalign.recipe import Recipe, load_recipe
from vidalign.testing.trial import finished
from vidalign.trainer import Trainer

STEPS, PROMPTS, GROUP = 2, 3, 4
N = PROMPTS * GROUP
REWARDED = ("objective.reward_weight=0.5", "rewards={exact_match: 1}")
VARIANTS = [
    ("lm_sft", (), Cost(forwards=PROMPTS)),
    ("lm_sft", ("objective.privileged_share=1", "trainer.micro_batch=1"), Cost(forwards=PROMPTS)),
    ("opd", (), Cost(forwards=2 * N, teacher_calls=N, responses=N)),
    ("opd", REWARDED, Cost(forwards=2 * N, reward_calls=N, teacher_calls=N, responses=N)),
    ("gkd", ("objective.on_policy=0.5", "trainer.micro_batch=4"), Cost(forwards=2 * N, teacher_calls=N, responses=N)),
    ("opsd", (), Cost(forwards=3 * N, responses=N)),
    ("opsd", ("objective.student_target=ema",), Cost(forwards=3 * N, responses=N)),
    ("dopd", (), Cost(forwards=3 * N, teacher_calls=N, responses=N)),
    ("dopd", ("objective.routing=uniform", "trainer.micro_batch=4"), Cost(3 * N, teacher_calls=N, responses=N)),
    ("dopd", REWARDED, Cost(forwards=3 * N, reward_calls=N, teacher_calls=N, responses=N)),
    ("dopd", ("objective.privilege=none",), Cost(forwards=3 * N, teacher_calls=N, responses=N)),
    ("dopd", ("objective.student_target=frozen", "objective.ht.weight=0"), Cost(3 * N, teacher_calls=N, responses=N)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language_cost")
    make_student(folder / "student.safetensors", 1, tied=True)
    make_student(folder / "teacher.safetensors", 2, tied=False)
    return folder


def recipe_of(folder: Path, name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    make(folder, name)  # writes the file
    small = [f"trainer.steps={STEPS}", f"trainer.prompts_per_step={PROMPTS}"]
    return load_recipe(folder / f"{name}.yaml", [*small, *overrides])


def test_the_counted_objectives_are_all_there_are() -> None:
    """A new objective of either kind joins a counted test, here or in `test_cost`."""
    assert {name for name, _, _ in VARIANTS} == {*NAMES, "lm_sft"}
    assert sorted(BUILT_IN) == sorted([*VIDEO, *NAMES, "lm_sft"])
    for name in (*NAMES, "lm_sft"):
        assert registry.get("objectives", name).needs.students == ("language",)


@pytest.mark.parametrize(("name", "overrides", "step"), VARIANTS)
def test_prediction_is_what_is_counted(
    name: str, overrides: tuple[str, ...], step: Cost, folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(folder, name, overrides)
    counted = finished(Trainer(recipe, tmp_path, callbacks=[Budget()])).cost
    assert counted == predict(recipe) == step + step


def test_a_generation_counts_once_whatever_its_length(folder: Path) -> None:
    """Also with pictures, whose model is wrapped once more, and not while the counter is paused."""
    make_picture_student(folder / "pictures.safetensors", 1)
    for path in ("student", "pictures"):
        _, ctx = make(folder, "opsd", f"student.path={folder}/{path}.safetensors")
        counter = Counter(ctx)
        for longest in (1, 6):
            ctx.student.spec.sampling.max_new_tokens = longest
            batch = ctx.student.generate(ctx.student.prompts(examples(3)), ctx.generators("rollout", [0, 1, 2]))
        assert batch.response.shape[1] > 1 and counter.total() == Cost(forwards=6, responses=6)
        with counter.paused():
            ctx.student.response_hidden(batch)
        assert counter.total() == Cost(forwards=6, responses=6)
        ctx.student.response_hidden(batch)
        assert counter.total() == Cost(forwards=9, responses=6)


def test_what_belongs_to_videos_is_refused(folder: Path) -> None:
    for wrong, message in (
        ("student.cache={window: 3}", "it is a setting of 'video', another of the students"),
        ("rewards={discriminator: 1.0}", "cannot judge texts"),
    ):
        with pytest.raises(RecipeError, match=message):
            make(folder, "opsd", wrong)
