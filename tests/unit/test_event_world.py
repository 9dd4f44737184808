"""The event world as a plugin: prompts, teacher, text, rewards, metrics, recipes, prompt switches, acceptance."""

from __future__ import annotations

import pytest
import torch

from vidalign import registry
from vidalign.bench.sections import HealthConfig
from vidalign.data.source import open_source
from vidalign.evaluation.metrics.base import Metric
from vidalign.recipe import load_recipe
from vidalign.rewards.base import CompositeReward
from vidalign.students.video import VideoStudent
from vidalign.students.video.kind import Video
from vidalign.students.video.rollout.plan import RolloutPlan
from vidalign.students.video.streaming import Scene, stream
from vidalign.text.pretrained import build_features, text_plugin
from vidalign.worlds.events import acceptance, scorer
from vidalign.worlds.events.captions import VOCABULARY, balanced, family, parse, prompts
from vidalign.worlds.events.renderer import clips
from vidalign.worlds.events.rewards import EventAlignment, EventMotion, EventVisual
from vidalign.worlds.events.text import EventText

REWARDS = (EventAlignment, EventMotion, EventVisual)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_prompt_source_lets_families_take_turns_and_has_their_ground_truth() -> None:
    source = open_source("events:train", seed=0, batch=16)
    drawn = [source[n] for n in range(32)]
    families = [family(parse(caption)) for caption in drawn]
    assert len(set(families[:16])) == len(set(families[16:])) == 16 and set(drawn) <= set(prompts("train"))
    truth = source.truth(drawn[:4], [seeded(n) for n in range(4)], 48)
    assert truth is not None and truth.shape == (4, 48, 3, 32, 32)
    with torch.no_grad():
        assert scorer.score(truth, drawn[:4])["lawful"].min() == 1
    kind = type(source)
    assert kind.out_of_domain("basic/train") == "events:basic/held_out_combinations"
    assert all(name in registry.names("metrics") for name in kind.judges)


def test_the_teacher_draws_the_same_ground_truth() -> None:
    captions = balanced("train", 4, seeded(1))
    teacher = registry.get("teachers", "events")(12)
    source = open_source("events:train", seed=0)
    made = teacher.clips(captions, [seeded(n) for n in range(4)])
    assert teacher.offers == ("clips",)
    assert torch.equal(made, source.truth(captions, [seeded(n) for n in range(4)], 12))


def test_every_caption_has_features_of_its_own() -> None:
    captions = list(prompts("unseen"))[::9]
    assert EventText.unknown_words([*captions, "a red dog turns, then"]) == ["dog"]
    plugin = text_plugin({"name": "events"})
    assert plugin.identity() != text_plugin({"name": "world"}).identity()
    encoder = plugin.build()
    found = encoder.encode(captions)
    assert max(map(len, found)) <= encoder.length and len(VOCABULARY) < 30
    whole = torch.stack([torch.nn.functional.pad(f, (0, 0, 0, encoder.length - len(f))).flatten() for f in found])
    assert torch.pdist(whole).min() > 0.5


def test_rewards_share_a_pass_and_leave_foreign_prompts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = balanced("train", 4, seeded(2))
    videos, passes = clips(captions, generator=seeded(3)), []
    batch = EventAlignment.batch
    monkeypatch.setattr(batch, "score", lambda *args: passes.append(1) or scorer.score(*args))
    rewards = CompositeReward({r.name: r() for r in REWARDS}, {r.name: 1.0 for r in REWARDS})
    with pytest.warns(UserWarning, match="'a dog runs' is no caption of the event world"):
        scores = rewards.score(videos, ["a dog runs", *captions[1:]])
    assert len(passes) == 1 and set(scores) == set(scorer.REWARDS)
    expected = scorer.score(videos, captions)
    for name, values in scores.items():
        assert values[0].isnan()
        torch.testing.assert_close(values[1:], expected[name][1:], atol=1e-4, rtol=1e-4)
    assert not registry.get("rewards", "event_motion").can_score("a large red circle falls")


METRICS = [name for name in registry.names("metrics") if name.startswith("event_")]


@pytest.mark.parametrize("name", METRICS)
def test_metrics_judge_ground_truth_well_and_other_prompts_not_at_all(name: str) -> None:
    metric: Metric = registry.get("metrics", name)()
    captions = [caption for caption in balanced("train", 3, seeded(4)) for _ in range(4)]
    frames = 48 if metric.judges == "long" else 12
    videos = clips(captions, frames, generator=seeded(5))
    values = metric.score(videos, captions)
    best = {"event_scorer": "lawful", "event_auditor": "lawful", "event_amount": "amount", "event_drift": "visual"}
    main = values[best.get(name, next(iter(values)))]
    assert main.nanmean() > 0.6 and main.isfinite().all()
    assert all(v.isnan().all() for v in metric.score(videos, ["a dog runs"] * 12).values())
    assert sorted(METRICS) == METRICS and len(METRICS) == 6


@pytest.fixture(scope="module")
def student() -> VideoStudent:
    """The pre-training recipe's network, untrained."""
    return VideoStudent.from_spec(Video.spec(load_recipe("events/pretrain/student").student)).eval()


def test_a_prompt_may_change_in_mid_stream(student: VideoStudent) -> None:
    """Chunks before the change are those without it; behind it the new caption decides."""
    before, after = "a large red circle glides right, then turns", "a large red circle glides right, then turns blue"
    text = build_features(student.spec.text)([before, after])
    noise = student.draw_noise(RolloutPlan(prefix=0, branch=8), [seeded(6)])

    def streamed(*scenes: Scene) -> torch.Tensor:
        chunks: list[torch.Tensor] = []
        stream(student, scenes, noise, lambda latents: latents, lambda index, made: chunks.append(made))
        return torch.cat(chunks, 1)

    plain = streamed(Scene(text[:1], 8))
    switched = streamed(Scene(text[:1], 5), Scene(text[1:], 3))
    assert plain.shape == switched.shape == (1, 24, 3, 32, 32)
    assert torch.equal(plain[:, :15], switched[:, :15]) and not torch.allclose(plain[:, 15:], switched[:, 15:])
    stayed = streamed(Scene(text[:1], 5), Scene(text[:1], 3))
    assert not torch.allclose(stayed[:, 15:], switched[:, 15:]), "it is the caption that makes the difference"


def test_ground_truth_meets_the_demands_on_a_world_that_discriminates() -> None:
    """Futures behind a shared beginning spread in every later chunk."""
    captions = balanced("unseen", 32, seeded(7))
    figures = acceptance.measure(acceptance.of_truth(captions, 6, 0), captions, 6)
    assert acceptance.criteria(figures, trained=False) == {"spread at every fork": True}
    assert all(fork["spread"]["auditor"] > 0.05 for fork in figures["forks"])
    success = [fork["means"]["strict_pass"] for fork in figures["forks"]]
    assert min(success) > 0.3 and max(success) < 0.8


def test_a_world_without_events_would_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vidalign.worlds.events import scenes

    monkeypatch.setattr(scenes, "PROBABILITY", 0.0)
    captions = balanced("unseen", 16, seeded(8))
    figures = acceptance.measure(acceptance.of_truth(captions, 4, 0), captions, 4)
    assert acceptance.criteria(figures, trained=True) == {
        "spread at every fork": False,
        "success in the band behind a prefix": False,
    }


def test_a_student_is_held_to_the_same_forks(student: VideoStudent) -> None:
    captions = balanced("unseen", 2, seeded(9))
    futures = acceptance.of_student(student, captions, 3, 0)
    same = futures(2).unflatten(0, (2, 3))
    assert torch.equal(same[:, 0, :6], same[:, 2, :6]) and not torch.equal(same[:, 0, 6:], same[:, 2, 6:])
    initial = acceptance.of_student(student, captions, 3, 0, initial_alone=True)(1).unflatten(0, (2, 3))
    assert torch.equal(initial[:, 0, :3], initial[:, 1, :3]) and not torch.equal(initial[:, 0, 3:], initial[:, 1, 3:])


def test_the_judges_of_a_benchmark_are_examined() -> None:
    source = open_source("events:unseen", seed=0)
    metrics = [registry.get("metrics", "event_auditor")()]
    found = source.examine([*source.first(6), "a whale"], metrics, HealthConfig(6, 2, 2))
    assert found is not None and set(found["hacking_probe"]) == set(scorer.REWARDS)
    assert found["falls"]["frozen first frame"]["mean"] > 0.2 and "jump of 3 px" in found["perturbations"]
    assert source.examine(["a whale"], metrics, HealthConfig()) is None
