"""The scorer and the auditor against corrupted clips: what each must lower, and known loopholes."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
import torch

from vidalign.errors import DataError
from vidalign.worlds import scoring
from vidalign.worlds.video import auditor, kinematics, laws, looks, perturbations, scorer, templates
from vidalign.worlds.video.captions import all_captions, balanced, parse
from vidalign.worlds.video.constants import COLOURS, EXTENT, SHAPES
from vidalign.worlds.video.diversity import diversity
from vidalign.worlds.video.renderer import clips, render
from vidalign.worlds.video.scenes import sample

FRAMES = 12
Row = dict[str, torch.Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def judged(videos: torch.Tensor, captions: list[str]) -> Row:
    with torch.no_grad():
        scores = scorer.score(videos, captions)
    return scores | {f"audit/{name}": value for name, value in auditor.audit(videos, captions).items()}


@pytest.fixture(scope="module")
def moving() -> list[str]:
    """Captions of every motion but `still`, which freezing, shuffling and reversing leave as it is."""
    return [caption for caption in balanced("train", 44, seeded(1)) if "still" not in caption]


@pytest.fixture(scope="module")
def rows(moving: list[str]) -> dict[str, Row]:
    return {name: judged(videos, prompts) for name, videos, prompts in perturbations.table(moving, 12, seeded(2))}


def test_ground_truth_scores_high_even_at_its_worst() -> None:
    captions = all_captions()[::4]
    row = judged(clips(captions, generator=seeded(3)), captions)
    assert row["text_alignment"].min() > 0.95
    assert row["motion_quality"].min() > 0.95
    assert row["visual_quality"].min() > 0.85 and row["visual_quality"].mean() > 0.95
    assert row["strict_pass"].min() == 1
    assert row["audit/composite"].min() > 0.93 and row["audit/composite"].mean() > 0.99
    assert row["audit/pass"].min() == 1


@pytest.mark.parametrize(("speeds", "frames"), [("held_out", 12), ("train", 24), ("long", 48)])
def test_other_speeds_and_lengths_score_high(speeds: str, frames: int) -> None:
    captions = balanced("train", 33, seeded(4))
    row = judged(clips(captions, frames, generator=seeded(5), speeds=speeds), captions)
    for name in ("text_alignment", "motion_quality", "audit/composite"):
        assert row[name].min() > 0.93, name
    assert row["strict_pass"].min() == 1


@pytest.mark.parametrize("frames", [3, 4, 6, 9])
def test_short_clips_are_scored(frames: int) -> None:
    captions = balanced("train", 22, seeded(6))
    row = judged(clips(captions, frames, generator=seeded(7)), captions)
    assert row["motion_quality"].min() > 0.9 and row["text_alignment"].min() > 0.7
    assert row["audit/composite"].min() > 0.5


CEILINGS = {  # row -> score -> the most that its mean may be
    "uniform noise": {
        "text_alignment": 0.1,
        "motion_quality": 0.05,
        "visual_quality": 0.05,
        "audit/composite": 0.15,
    },
    "frozen first frame": {"text_alignment": 0.6, "motion_quality": 0.15, "audit/composite": 0.35},
    "wrong caption": {"text_alignment": 0.15, "motion_quality": 0.1, "audit/composite": 0.2},
    "wrong motion only": {"text_alignment": 0.6, "motion_quality": 0.15, "audit/composite": 0.45},
    "shuffled frames": {"text_alignment": 0.65, "motion_quality": 0.1, "audit/composite": 0.45},
    "blur 1 px": {"visual_quality": 0.6, "audit/appearance": 0.7},
    "blur 2 px": {
        "text_alignment": 0.75,
        "visual_quality": 0.3,
        "audit/appearance": 0.4,
        "audit/composite": 0.7,
    },
    "time reversed": {"text_alignment": 0.6, "motion_quality": 0.1, "audit/composite": 0.4},
    "half speed": {"text_alignment": 0.85, "motion_quality": 0.5, "audit/composite": 0.8},
    "jitter 2 px": {"motion_quality": 0.15, "audit/physics": 0.15, "audit/composite": 0.5},
    "noise sd .05": {"visual_quality": 0.45, "audit/appearance": 0.85},
    "extra object": {"text_alignment": 0.75, "audit/count": 0.5},
    "empty scene": {
        "text_alignment": 0.1,
        "motion_quality": 0.02,
        "visual_quality": 0.02,
        "audit/composite": 0.05,
    },
}


@pytest.mark.parametrize("name", list(CEILINGS))
def test_perturbations_lower_what_they_must(rows: dict[str, Row], name: str) -> None:
    assert set(CEILINGS) | {"ground truth"} == set(perturbations.ROWS)
    for score, ceiling in CEILINGS[name].items():
        assert rows[name][score].mean() < min(ceiling, float(rows["ground truth"][score].mean())), score
    if name not in ("blur 1 px", "noise sd .05", "half speed"):
        assert rows[name]["strict_pass"].mean() == 0


def test_visual_quality_does_not_look_at_the_caption(rows: dict[str, Row]) -> None:
    truth = rows["ground truth"]["visual_quality"]
    for name in ("wrong caption", "wrong motion only", "shuffled frames", "time reversed"):
        torch.testing.assert_close(rows[name]["visual_quality"], truth, atol=1e-4, rtol=0)


def test_scores_fall_steadily_with_the_noise_of_the_track(moving: list[str]) -> None:
    scenes = sample(moving, FRAMES, generator=seeded(8))
    means = []
    for sd in (0.0, 0.25, 0.5, 1.0, 2.0):
        row = judged(render(perturbations.noisy_track(scenes, sd, seeded(9))), moving)
        means.append([float(row[name].mean()) for name in ("motion_quality", "audit/physics", "audit/composite")])
    steps = torch.tensor(means).diff(dim=0)
    assert (steps < 0).all(), "every step of noise costs motion quality, physics and the composite"
    assert 0.65 < means[1][0] < 0.9, "a quarter of a pixel is a small mistake"


def repainted(caption: str, frames: slice, *, colour: int | None = None, shape: int | None = None, which: int = 0):
    """A true clip of the caption whose object `which` has another colour or shape in some frames."""
    scenes = sample([caption], FRAMES, generator=seeded(10))
    video = render(scenes)
    other = dataclasses.replace(scenes, colour=scenes.colour.clone(), shape=scenes.shape.clone())
    if colour is not None:
        other.colour[:, which] = colour
    if shape is not None:
        other.shape[:, which] = shape
    video[:, frames] = render(other)[:, frames]
    return video


def test_loophole_attributes_averaged_over_frames() -> None:
    caption = "a large red circle glides right"
    true = judged(repainted(caption, slice(0, 0)), [caption])
    for change in ({"colour": COLOURS.index("blue")}, {"shape": SHAPES.index("diamond")}):
        row = judged(repainted(caption, slice(5, 6), **change), [caption])
        assert row["text_alignment"] < true["text_alignment"] - 0.25, "one wrong frame of twelve is seen"
        assert row["strict_pass"] == 0 < true["strict_pass"]


def test_loophole_attributes_averaged_over_objects() -> None:
    caption = "a large red circle glides right and hits a large blue square"
    for change in ({"colour": COLOURS.index("green")}, {"shape": SHAPES.index("diamond")}):
        row = judged(repainted(caption, slice(None), which=1, **change), [caption])
        assert row["text_alignment"] < 0.6, "a wrong second object is worth no more than a wrong first one"
        assert row["strict_pass"] == 0 == row["audit/pass"]


def test_loophole_pass_with_wrong_frames() -> None:
    caption = "a small cyan square glides up"
    videos = torch.cat([repainted(caption, slice(n, n + 1), shape=SHAPES.index("circle")) for n in range(FRAMES)])
    row = judged(videos, [caption] * FRAMES)
    assert row["strict_pass"].max() == 0, "one wrong shape in any frame is no pass"
    gone = repainted(caption, slice(0, 0)).repeat(FRAMES, 1, 1, 1, 1)
    for n in range(FRAMES):
        gone[n, n] = 0.1
    row = judged(gone, [caption] * FRAMES)
    assert row["strict_pass"].max() == 0 and row["motion_quality"].max() < 0.2, "an object that blinks is no pass"


def test_loophole_collision_without_approach() -> None:
    caption = "a small red circle glides right and hits a small blue square"
    scenes = sample([caption], FRAMES, generator=seeded(11))
    place, speed, gap = 8.0, 1.2, 3.0 * (1 + EXTENT["square"])
    times = torch.arange(float(FRAMES))
    scenes.position[..., 1] = 16.0
    scenes.position[0, :, 0, 0] = place  # the striker never moves, the struck one leaves at once
    scenes.position[0, :, 1, 0] = place + gap + speed * times
    row = judged(render(scenes), [caption])
    assert row["strict_pass"] == 0 and row["motion_quality"] < 0.5 and row["audit/motion"] < 0.1
    scenes.position[0, :, 0, 0] = place + speed * times  # they travel together
    row = judged(render(scenes), [caption])
    assert row["strict_pass"] == 0 and row["motion_quality"] < 0.3 and row["audit/motion"] < 0.1


def test_laws_find_their_own_initial_states() -> None:
    captions = balanced("train", 110, seeded(12))
    scenes = sample(captions, FRAMES, generator=seeded(13))
    track = torch.where(scenes.present[:, None, :, None], scenes.position, 0.0)
    reach = torch.tensor([[EXTENT[SHAPES[k]] for k in row] for row in scenes.shape.tolist()]) * scenes.radius
    error = (laws.fit(track, reach) - track[:, None]).square().sum(-1).mean(2).amax(-1).sqrt()
    own = torch.tensor([laws.LAWS.index(parse(caption).motion) for caption in captions])
    assert error.gather(1, own[:, None]).max() < 0.05
    assert error.scatter(1, own[:, None], 99.0).min() > 1.0, "no other law comes within a pixel"


def test_auditor_tracks_to_a_tenth_of_a_pixel() -> None:
    captions = balanced("train", 66, seeded(14))
    scenes = sample(captions, FRAMES, generator=seeded(15))
    found = auditor.look(render(scenes), captions).xy
    error = (found - scenes.position)[scenes.present[:, None].expand(-1, FRAMES, -1)].abs()
    assert error.mean() < 0.03 and error.max() < 0.6, "touching objects may blur a rim for a frame"


def test_scores_are_deterministic_and_independent_of_the_batch(moving: list[str]) -> None:
    videos = perturbations.blur(clips(moving, generator=seeded(16)), 0.7)
    row, again = judged(videos, moving), judged(videos, moving)
    alone = [judged(videos[k : k + 1], moving[k : k + 1]) for k in (0, 17, len(moving) - 1)]
    for name, values in row.items():
        assert torch.equal(values, again[name]), name
        assert all(((v >= 0) & (v <= 1)).all() for v in (values,)), name
        for part, k in zip(alone, (0, 17, len(moving) - 1), strict=True):
            torch.testing.assert_close(part[name], values[k : k + 1], atol=1e-4, rtol=1e-4)


def test_scores_are_differentiable_everywhere(moving: list[str]) -> None:
    for videos in (
        torch.rand(4, FRAMES, 3, 32, 32, generator=seeded(17)),
        torch.full((4, FRAMES, 3, 32, 32), 0.1),
    ):
        videos.requires_grad_()
        scores = scorer.score(videos, moving[:4])
        sum(scores[name].sum() for name in scorer.SCORES[:3]).backward()
        assert videos.grad is not None and videos.grad.isfinite().all()


def test_broken_clips_are_nan_and_strange_prompts_are_refused(moving: list[str]) -> None:
    videos = clips(moving[:3], generator=seeded(18))
    videos[1, 4, 0, 3, 3] = torch.nan
    for values in judged(videos, moving[:3]).values():
        assert values.isnan().tolist() == [False, True, False]
    for judge in (scorer.score, auditor.audit):
        with pytest.raises(DataError, match="no caption|not a caption"):
            judge(videos, [*moving[:2], "a dog runs"])


def test_quarters_show_where_a_long_clip_breaks() -> None:
    captions = balanced("train", 11, seeded(19))
    videos = clips(captions, 48, generator=seeded(20), speeds="long")
    good = scorer.quarter_scores(videos, captions)
    assert all(values.shape == (11, 4) and values.min() > 0.85 for values in good.values())
    videos[:, 36:] = perturbations.blur(videos[:, 36:], 2.0)
    bad = scorer.quarter_scores(videos, captions)
    assert bad["visual_quality"][:, 3].max() < 0.5 < bad["visual_quality"][:, :3].min()
    audited = auditor.quarter_audit(videos, captions)
    assert audited["appearance"].shape == (11, 4)
    assert audited["appearance"][:, 3].max() < 0.6 < 0.8 < audited["appearance"][:, :3].min()


def test_diversity_tells_one_clip_from_many() -> None:
    captions = [caption for caption in balanced("train", 11, seeded(21)) for _ in range(6)]
    fresh = clips(captions, generator=seeded(22))
    assert diversity(fresh, captions)["diversity"] > 0.75
    assert diversity(fresh, captions, by="motion")["diversity"] > 0.75
    same = fresh[::6].repeat_interleave(6, 0)
    assert diversity(same, captions)["diversity"] < 1e-3
    with pytest.raises(DataError, match="no caption has two clips"):
        diversity(fresh[::6], captions[::6])


def imports(module: object) -> set[str]:
    tree = ast.parse(Path(module.__file__).read_text())  # type: ignore[attr-defined]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("vidalign")}


def test_scorer_and_auditor_share_only_the_constants_and_the_captions() -> None:
    judges = {"scorer": (scorer, laws, looks, scoring), "auditor": (auditor, kinematics, templates)}
    shared = {"vidalign.worlds.video.constants", "vidalign.worlds.video.captions", "vidalign.deferred"}
    for name, modules in judges.items():
        own = {module.__name__ for module in modules}
        for module in modules:
            for used in imports(module) - {"vidalign.worlds.video"}:
                assert any(used.startswith(root) for root in shared | own), f"the {name} imports {used}"


def test_everything_is_computed_where_the_clips_are() -> None:
    """Tensors of the meta device cannot be mixed with a CPU's, as an accelerator's cannot."""
    track, extents = torch.empty(2, FRAMES, 2, 2, device="meta"), torch.empty(2, 2, device="meta")
    assert laws.fit(track, extents).device.type == "meta"
    found = auditor.audit(torch.empty(2, FRAMES, 3, 32, 32, device="meta"), all_captions()[:2])
    assert {value.device.type for value in found.values()} == {"meta"}
