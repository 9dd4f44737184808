"""dopd for video students: the routed loss written out unit by unit, exact zeros, controls, separate caches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_helpers import CHUNK, PROMPTS, accumulate, collect, make, network_of, whole
from torch import Tensor

from vidalign.context import TrainContext
from vidalign.errors import DataError, RecipeError, UserError
from vidalign.losses import gaussian_policy as policy
from vidalign.losses.routing import Regime, trimmed_mean
from vidalign.objectives.base import Experience, Phase
from vidalign.objectives.experimental.dopd_video import DOPDVideo
from vidalign.students.video import VideoStudent
from vidalign.worlds.video.captioner import rollout_captions
from vidalign.worlds.video.prompts import Captions
from vidalign.worlds.video.renderer import clips

BLOCK = 16
NEVER = "privileged_share=0"


def dopd(folder: Path, *overrides: str) -> tuple[DOPDVideo, TrainContext]:
    settings = [f"objective.{o}" if not o.startswith(("teacher", "rewards")) else o for o in (NEVER, *overrides)]
    objective, ctx = make(folder, "dopd_video", f"objective.block={BLOCK}", *settings)
    assert isinstance(objective, DOPDVideo)
    return objective, ctx


def gradient_norm(objective: DOPDVideo, ctx: TrainContext, data: Experience) -> float:
    return max(float(g.abs().max()) for g in accumulate(objective, ctx, data, Phase(), 64)[1].values())


def velocities(ctx: TrainContext, data: Experience) -> tuple[Tensor, Tensor, Tensor]:
    """v_S, v_S^p, v_T^p of text privilege, sample by sample, every chunk on a cache of its own clean past."""
    columns: list[list[Tensor]] = [[], [], []]
    teacher = ctx.roles._frozen["teacher"].network
    for n in range(len(data)):
        own_text, bare = data["privilege"][n : n + 1], data.text[int(data.group_index[n])][None]  # type: ignore[index]
        for k, (network, text) in enumerate(
            ((network_of(ctx), bare), (network_of(ctx), own_text), (teacher, own_text))
        ):
            past, chunks = network.begin(text), []
            x_t, sigma, clean = (data[name][n : n + 1] for name in ("x_t", "sigma", "latents"))
            for start in range(0, x_t.shape[1], CHUNK):
                here = slice(start, start + CHUNK)
                with torch.no_grad():
                    chunks.append(network.velocity(x_t[:, here], sigma[:, here], text, past))
                past = network.extend(past, clean[:, here], text)
            columns[k].append(torch.cat(chunks, 1))
    bare_v, own_v, teacher_v = (torch.cat(column) for column in columns)
    return bare_v, own_v, teacher_v


def by_hand(ctx: TrainContext, data: Experience, config: Any) -> tuple[float, list[int]]:
    """The method, unit by unit in python."""
    bare, own, teacher = velocities(ctx, data)
    sigmas, factors = ctx.sigmas, [config.weights.lh, config.weights.ll, config.weights.ht, config.weights.hs]
    weights = {s: w for s, w in zip(sigmas, policy.transition_weights(sigmas), strict=True)}
    cuts = [slice(k, k + BLOCK) for k in range(0, bare.shape[-1], BLOCK)]
    steps = [sigmas.index(float(data["sigma"][n, 0])) for n in range(len(data))]
    level = data["sigma"][..., None, None, None]
    floor = 0.01 * data["latents"].flatten(1).var(1, unbiased=False) + 1e-12
    errors = [((data["x_t"] - level * v - data["latents"]) ** 2).flatten(1).mean(1) + floor for v in (bare, own)]
    c = (errors[0] / errors[1]).clamp(max=1)
    units = []
    for n in range(len(data)):
        w = weights[sigmas[steps[n]]]
        for chunk in range(bare.shape[1] // CHUNK):
            for rows in cuts:
                for columns in cuts:
                    at = (n, slice(chunk * CHUNK, (chunk + 1) * CHUNK), slice(None), rows, columns)
                    parts = [x[at] for x in (teacher - own, own - bare, teacher - bare)]
                    units.append((n, chunk, w, *parts, *(w * float((p**2).mean()) for p in parts)))
    total, chosen = 0.0, []
    for n, chunk, w, capability, information, _, gap, near_own, near_teacher in units:
        same = [u for u in units if steps[u[0]] == steps[n]]
        gap_mean = trimmed_mean(torch.tensor([u[6] for u in same if u[1] == chunk]), config.trim)
        c_mean = trimmed_mean(torch.stack([c[m] for m in range(len(data)) if steps[m] == steps[n]]), config.trim)
        if gap < gap_mean:
            regime = Regime.LH if float(c[n]) >= c_mean else Regime.LL
        else:
            regime = Regime.HT if near_teacher <= near_own else Regime.HS
        a = 1.0 if regime in (Regime.LH, Regime.HT) else 0.0
        shift = a * capability + c[n] * information
        if regime == Regime.HT:
            m2 = 2 * w * (shift**2).mean(1)
            value = float((math.log(2) * (1 - (-m2 / (8 * math.log(2))).exp())).mean())
        else:
            value = w * float((torch.nn.functional.avg_pool2d(shift, 4) ** 2).mean())
        total += factors[regime] * value / len(units)
        chosen.append(int(regime))
    return total, chosen


def test_the_loss_is_the_method_unit_by_unit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, ctx = dopd(folder, "group_size=4")
    other = [PROMPTS[1], PROMPTS[0], "a large red circle falls", PROMPTS[1]] * 2
    monkeypatch.setattr(Captions, "describe", lambda self, clips, prompts: other[: len(prompts)])
    data = collect(objective, ctx)
    expected, regimes = by_hand(ctx, data, objective.config)
    assert data["regime"].flatten().tolist() == regimes and len(set(regimes)) >= 3
    assert whole(objective, ctx, data).loss.item() == pytest.approx(expected, rel=1e-4)
    assert gradient_norm(objective, ctx, data) > 1e-6


def test_the_videos_of_a_step_are_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(TrainContext, "show", lambda self, clips, prompts, scores: shown.append((len(clips), prompts)))
    collect(*dopd(folder, "group_size=2"))
    assert shown == [(4, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]])]


def test_without_privilege_the_student_regimes_are_exactly_nothing(folder: Path) -> None:
    only = ["privilege=none", "weights.lh=0", "weights.ht=0"]
    objective, ctx = dopd(folder, *only, "group_size=4")
    data = collect(objective, ctx)
    assert (data["regime"] == Regime.HS).any() and data.metrics["objective/information/mean"] == 0
    assert data.metrics["objective/consistency/mean"] == 1.0
    assert whole(objective, ctx, data).loss.item() == 0 and gradient_norm(objective, ctx, data) == 0


def test_an_equal_teacher_without_privilege_teaches_nothing(folder: Path) -> None:
    objective, ctx = dopd(folder, "privilege=none", f"teacher.path={folder}/student.safetensors")
    data = collect(objective, ctx)
    assert data.metrics["objective/capability/mean"] == 0
    assert whole(objective, ctx, data).loss.item() == 0 and gradient_norm(objective, ctx, data) == 0


@pytest.mark.parametrize(("targets", "a", "b"), [("uniform", 1.0, 0.0), ("uniform", 1.0, 1.0), ("literal", None, 1.0)])
def test_controls_of_the_target(targets: str, a: float | None, b: float, folder: Path) -> None:
    """Uniform (1, 0) keeps the information out; literal targets are the teacher or the privileged student."""
    objective, ctx = dopd(folder, f"targets={targets}", f"capability={a or 1}", f"information={b}", "pairing=shuffled")
    data = collect(objective, ctx)
    bare, own, teacher = velocities(ctx, data)
    taught = (data["regime"] == Regime.HT) | (data["regime"] == Regime.LH)
    share = policy.over_units(taught.double(), CHUNK, BLOCK) if a is None else a
    torch.testing.assert_close(
        data["shift"].double(), (share * (teacher - own) + b * (own - bare)).double(), rtol=1e-3, atol=1e-4
    )
    assert targets == "literal" or (data["regime"] == Regime.HT).all()


@pytest.mark.parametrize("group", [1, 2])
def test_shuffled_privilege_is_that_of_another_prompt(group: int, folder: Path) -> None:
    found = {}
    for pairing in ("own", "shuffled"):
        objective, ctx = dopd(folder, "privilege=future", f"pairing={pairing}", f"group_size={group}")
        found[pairing] = collect(objective, ctx)["privilege"]
    assert torch.equal(found["shuffled"], found["own"].roll(group, 0))
    assert not torch.equal(found["own"][0], found["own"][group])


@pytest.mark.parametrize("privilege", ["caption", "future"])
def test_privilege_never_enters_the_students_own_cache(
    privilege: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's forward is the same function whatever the privilege says; the privileged ones are not."""
    objective, ctx = dopd(folder, f"privilege={privilege}")
    data = collect(objective, ctx)
    tensors = data.tensors | {"privilege": data["privilege"] + 1.0}
    changed = Experience(tensors, data.group_index, data.text, data.prompts)
    with torch.no_grad():
        for privileged in (False, True):
            first, second = (objective._velocity(ctx, ctx.student, d, privileged=privileged) for d in (data, changed))
            assert torch.equal(first, second) == (not privileged)
    texts: list[Tensor] = []
    plain = VideoStudent.forward

    def watched(self: VideoStudent, x_t: Tensor, sigma: Tensor, text: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        texts.append(text)
        return plain(self, x_t, sigma, text, *args, **kwargs)

    monkeypatch.setattr(VideoStudent, "forward", watched)
    whole(objective, ctx, data)
    assert len(texts) == 1 and torch.equal(texts[0], data.text)  # type: ignore[arg-type]


def test_the_future_is_that_behind_a_chunk(folder: Path) -> None:
    """A chunk sees what comes after it, not what is in its own place; the last chunk sees no privilege."""
    objective, ctx = dopd(folder, "privilege=future")
    data = collect(objective, ctx)
    data.tensors["privilege"] = data["privilege"].clone()  # of its own: it was the rollout itself
    with torch.no_grad():
        before = objective._velocity(ctx, ctx.student, data, privileged=True)
        data["privilege"][:, :CHUNK] += 1.0
        assert torch.equal(before, objective._velocity(ctx, ctx.student, data, privileged=True))
        data["privilege"][:, -CHUNK:] += 1.0
        after = objective._velocity(ctx, ctx.student, data, privileged=True)
        bare = objective._velocity(ctx, ctx.student, data, privileged=False)
    moved = (before - after).abs().unflatten(1, (-1, CHUNK)).amax((0, 2, 3, 4, 5))
    assert moved[0] > 1e-6 and moved[1] > 1e-6 and moved[2] == 0
    assert torch.equal(after[:, -CHUNK:], bare[:, -CHUNK:])


def test_some_steps_train_the_student_with_privilege(folder: Path) -> None:
    objective, ctx = make(folder, "dopd_video", "objective.privileged_share=1", f"objective.block={BLOCK}")
    assert isinstance(objective, DOPDVideo)
    data = collect(objective, ctx)
    bare, own, teacher = velocities(ctx, data)
    torch.testing.assert_close(data["shift"], teacher - own, rtol=1e-3, atol=1e-4)
    assert gradient_norm(objective, ctx, data) > 1e-6
    objective, ctx = make(folder, "dopd_video")
    assert isinstance(objective, DOPDVideo)
    count = 0
    for ctx.step in range(400):
        count += objective._present(ctx)
    assert 0.1 < count / 400 < 0.2


@pytest.mark.parametrize("share", [0, 1])
def test_the_loss_does_as_collect_decided(share: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, ctx = dopd(folder, f"privileged_share={share}")
    data = collect(objective, ctx)
    expected, part = float(whole(objective, ctx, data).loss), float(whole(objective, ctx, data.candidates(1, 2)).loss)
    asked: list[bool] = []
    plain = objective._velocity

    def watched(*args: Any, privileged: bool) -> Tensor:
        asked.append(privileged)
        return plain(*args, privileged=privileged)

    monkeypatch.setattr(objective, "_velocity", watched)
    monkeypatch.setattr(ctx, "shared_generator", None)
    assert float(whole(objective, ctx, data).loss) == expected
    assert float(whole(objective, ctx, data.candidates(1, 2)).loss) == part
    assert asked == [bool(share)] * 2


def test_rewards_endorse_clip_by_clip(folder: Path) -> None:
    objective, ctx = dopd(folder, "group_size=2", "rewards={text_alignment: 1.0}")
    data = collect(objective, ctx)
    assert data.metrics["objective/endorsed/mean"] * len(data) == pytest.approx(
        round(data.metrics["objective/endorsed/mean"] * len(data))
    )
    for n in range(len(data)):
        high = {Regime(r) for r in data["regime"][n].flatten().tolist()} & {Regime.HT, Regime.HS}
        assert len(high) <= 1, "one verdict for all units of a clip"


def test_captions_of_rollouts_tell_what_is_seen() -> None:
    """Clips of other captions than the prompts: one attribute away, and exactly as asked."""
    shown = ["a large red circle falls", "a large red circle falls", "a small blue square stays still"]
    asked = ["a large green circle falls", "a large red circle falls", "a small blue square glides left"]
    frames = torch.cat([clips([text], 12, generator=torch.Generator().manual_seed(1)) for text in shown])
    assert rollout_captions(frames, asked) == shown
    with pytest.raises(UserError, match="embedded world only"):
        rollout_captions(frames[:1], ["a cat"])


def test_dense_prompts_come_from_a_table(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "dense.json"
    table.write_text(json.dumps({PROMPTS[0]: PROMPTS[1], PROMPTS[1]: PROMPTS[0]}))
    objective, ctx = dopd(folder, "privilege=dense_prompt", f"dense_prompts={table}")
    data = collect(objective, ctx)
    assert torch.equal(data["privilege"], ctx.text(PROMPTS).flip(0))
    table.with_name("short.json").write_text(json.dumps({PROMPTS[0]: "x"}))
    objective, ctx = dopd(folder, "privilege=dense_prompt", f"dense_prompts={table.with_name('short.json')}")
    with pytest.raises(DataError, match="no dense prompt"):
        collect(objective, ctx)


def test_a_teacher_of_another_transport_is_refused(folder: Path, tmp_path: Path) -> None:
    other = VideoStudent.load(folder / "student.safetensors")
    other.spec.sampler.sigmas = [1.0, 0.5]
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="sampler.sigmas"):
        dopd(folder, f"teacher.path={tmp_path}/other.safetensors")
    with pytest.raises(UserError, match="blocks of 12"):
        dopd(folder, "block=12")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("block=6", "block"),
        ("trim=1", "trim"),
        ("privileged_share=2", "privileged_share"),
        ("weights.ht=-1", "ht"),
        ("privilege=dense_prompt", "dense_prompts"),
    ],
)
def test_impossible_settings_are_refused(wrong: str, named: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=named):
        make(folder, "dopd_video", f"objective.{wrong}")


# --- the losses ---


def test_transition_weights_of_the_shift_5_sampler() -> None:
    sigmas = [1.0, 0.9375, 0.8333333, 0.625]
    assert policy.transition_weights(sigmas) == pytest.approx([0.0022, 0.0176, 0.125, 0.625**2 / 2], rel=0.02)


def test_the_robust_loss_is_js_near_and_ln_2_far() -> None:
    """Against the Jensen-Shannon divergence of two unit Gaussians by quadrature."""
    x = torch.linspace(-40, 40, 80001, dtype=torch.float64)
    for m, tolerance in ((0.1, 0.01), (0.5, 0.02), (30.0, 1e-6)):
        p, q = (torch.exp(-((x - mean) ** 2) / 2) / math.sqrt(2 * math.pi) for mean in (0.0, m))
        mixture = (p + q) / 2
        kl = [
            torch.where(r > 1e-300, r * (r / mixture.clamp(min=1e-300)).clamp(min=1e-300).log(), 0.0 * r)
            for r in (p, q)
        ]
        js = 0.5 * float(torch.trapezoid(kl[0] + kl[1], x))
        difference = torch.full((1, CHUNK, 3, 8, 8), m, dtype=torch.float64)
        found = policy.robust_loss(difference, torch.full((1, CHUNK), 0.5, dtype=torch.float64), CHUNK, 8)
        assert float(found) == pytest.approx(js, rel=tolerance)


def test_the_coarse_loss_is_blind_to_detail() -> None:
    checkers = torch.ones(1, CHUNK, 3, 8, 8, dtype=torch.float64)
    checkers[..., ::2] = -1
    weight = torch.full((1, CHUNK), 0.3, dtype=torch.float64)
    assert float(policy.coarse_loss(checkers, weight, CHUNK, 8)) == 0
    assert float(policy.coarse_loss(torch.ones_like(checkers), weight, CHUNK, 8)) == pytest.approx(0.3)
    assert float(policy.unit_gap(checkers, weight, CHUNK, 8)) == pytest.approx(0.3)


def test_consistency_has_a_floor_of_the_rollouts_variance() -> None:
    """A last step has no error of its own: 1 % of the variance, here 4, is what the privileged one is held to."""
    final = torch.tensor([[2.0, -2.0, 2.0, -2.0]], dtype=torch.float64)
    for error, bare, expected in ((0.04, 0.0, 0.5), (0.36, 0.0, 0.1), (0.36, 0.16, 0.5), (0.0, 0.0, 1.0), (0, 1, 1)):
        found = policy.consistency(final + bare**0.5, final - error**0.5, final)
        assert float(found) == pytest.approx(expected)
    still = torch.zeros(1, 4, dtype=torch.float64)
    assert float(policy.consistency(still + 1e-6, still + 3**0.5 * 1e-6, still)) == pytest.approx(0.5)
