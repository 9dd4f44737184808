"""Distribution matching distillation: the loss against its closed form, who gets gradients, whether samples move."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from vidalign.build import asked_prompts, build_context, build_objective, build_prompts, training_prompts
from vidalign.context import Batch, TrainContext
from vidalign.errors import RecipeError, UserError
from vidalign.losses.distribution_matching import distribution_matching_loss
from vidalign.objectives.base import Experience, MicroBatch, Phase
from vidalign.objectives.baselines.dmd import DMD, _full_fake_score
from vidalign.objectives.parts.rollouts import states_at
from vidalign.recipe import load_recipe
from vidalign.students.video import VideoStudent, VideoStudentSpec
from vidalign.students.video.context import Context
from vidalign.students.video.rollout.plan import ChunkStates, Rollout
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import Trainer
from vidalign.worlds.video import captions

TRANSFORMER = dict(
    patch_size=[1, 8, 8],
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=3,
    out_channels=3,
    text_dim=64,
    freq_dim=16,
    ffn_dim=48,
    num_layers=2,
    cross_attn_norm=True,
    rope_max_seq_len=64,
)
PROMPTS = captions.prompts("train")[:2]


# --- the loss ---


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gradient_is_the_closed_form() -> None:
    x0, fake, real = (numbers(3, 2, 5, seed=seed) for seed in range(3))
    x0[1] *= 100
    leaf = x0.clone().requires_grad_()
    loss = distribution_matching_loss(leaf, fake, real)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    for n in range(3):
        normaliser = sum(abs(float(a - b)) for a, b in zip(x0[n].flatten(), real[n].flatten(), strict=True)) / 10
        expected = (fake[n] - real[n]) / normaliser
        torch.testing.assert_close(gradient[n] * 10, expected, rtol=1e-13, atol=0)
        assert math.isclose(loss[n].item(), float(expected.square().sum()) / 20, rel_tol=1e-13)


def test_gradient_stops_at_the_scores_and_is_zero_where_they_agree() -> None:
    x0, fake, real = (numbers(2, 4, seed=seed).requires_grad_() for seed in range(3))
    distribution_matching_loss(x0, fake, real).sum().backward()
    assert fake.grad is None and real.grad is None
    x0.grad = None
    distribution_matching_loss(x0, real, real).sum().backward()
    assert x0.grad is not None and x0.grad.abs().max() == 0


def test_a_perfect_sample_gives_a_finite_gradient() -> None:
    x0 = numbers(1, 4).requires_grad_()
    distribution_matching_loss(x0, x0.detach() + 1e-7, x0.detach()).sum().backward()
    assert x0.grad is not None and x0.grad.isfinite().all()


# --- exit steps ---


def test_exit_takes_one_step_of_every_chunk() -> None:
    states = {}
    for chunk, sigmas in {0: [1.0, 0.8, 0.6, 0.4], 1: [1.0, 0.5]}.items():
        steps = torch.arange(len(sigmas), dtype=torch.float32).reshape(1, -1, 1, 1, 1, 1)
        x_t = (10 * chunk + steps).expand(3, len(sigmas), 2, 1, 1, 1)
        states[chunk] = ChunkStates(sigmas, x_t, x_t + 100)
    rollout = Rollout(torch.zeros(3, 4, 1, 1, 1), Context(batch=3), slice(0, 4), states)
    chosen = states_at(rollout, torch.tensor([0.0, 0.5, 0.99]))
    assert chosen["x_t"].flatten(1).tolist() == [[0, 0, 10, 10], [2, 2, 11, 11], [3, 3, 11, 11]]
    assert torch.equal(chosen["x0"], chosen["x_t"] + 100)
    assert chosen["sigma"].tolist() == [[1, 1, 1, 1], [0.6, 0.6, 0.5, 0.5], [0.4, 0.4, 0.5, 0.5]]


# --- the objective on tiny networks ---


def make_network(path: Path, seed: int, text: str = "world") -> None:
    spec = VideoStudentSpec.from_dict({"transformer": TRANSFORMER, "prediction": "x0", "text": {"name": text}})
    network = VideoStudent.from_spec(spec, seed)
    with torch.no_grad():  # the stock head starts near zero
        network.base.proj_out.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    network.save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_network(tmp_path / "student.safetensors", 1)
    make_network(tmp_path / "teacher.safetensors", 2)
    (tmp_path / "recipe.yaml").write_text(
        f"""\
student: {{path: {tmp_path}/student.safetensors}}
teacher: {{path: {tmp_path}/teacher.safetensors}}
objective: {{name: dmd, fake_score: {{updates: 2, learning_rate: 3.0e-3}}}}
data: {{frames: 6}}
trainer: {{steps: 2, prompts_per_step: 2, micro_batch: 1, learning_rate: 1.0e-3}}
tracking: {{tensorboard: false, panel: none, clips_every: 0}}
""",
        encoding="utf-8",
    )
    return tmp_path


def context(folder: Path, *overrides: str) -> tuple[DMD, TrainContext, Experience]:
    recipe = load_recipe(folder / "recipe.yaml", list(overrides))
    objective = build_objective(recipe)
    assert isinstance(objective, DMD)
    ctx = build_context(recipe, objective, Tracker.silent())
    with torch.no_grad():
        experience = objective.collect(ctx, Batch(0, PROMPTS, [0, 1]))
    return objective, ctx, experience


def graded(network: nn.Module) -> bool:
    return any(p.grad is not None for p in network.parameters())


def test_each_phase_trains_its_own_network_only(folder: Path) -> None:
    objective, ctx, experience = context(folder)
    networks = {role: engine.network for role, engine in ctx.roles.engines.items()}
    networks["teacher"] = ctx.roles._frozen["teacher"].network
    assert set(networks) == {"student", "fake_score", "teacher"}
    for phase in objective.phases(0):
        before = {role: copy.deepcopy(network.state_dict()) for role, network in networks.items()}
        with ctx.roles.phase(phase.role) as engine:
            engine.backward(objective.loss(ctx, MicroBatch(experience, 1.0), phase).loss)
            assert {role for role, network in networks.items() if graded(network)} == {phase.role}
            assert engine.step() > 1e-6
        moved = {r for r, n in networks.items() for k, v in n.state_dict().items() if not torch.equal(v, before[r][k])}
        assert moved == {phase.role}


def test_the_videos_of_a_step_are_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(TrainContext, "show", lambda self, clips, prompts, scores: shown.append((len(clips), prompts)))
    context(folder)
    assert shown == [(2, PROMPTS)]


def test_the_fake_score_saves_memory_as_the_student_does(folder: Path) -> None:
    student, teacher = (VideoStudent.load(folder / f"{name}.safetensors") for name in ("student", "teacher"))
    for on in (False, True):
        student.gradient_checkpointing(on)
        fake_score = _full_fake_score(student, SimpleNamespace(model=teacher))
        assert fake_score.base.is_gradient_checkpointing is on and fake_score is not teacher
        assert all(p.requires_grad for p in fake_score.parameters())


def test_equal_scores_leave_the_student_alone(folder: Path) -> None:
    objective, ctx, experience = context(folder)
    with ctx.roles.phase("student") as engine:  # the fake score is still the teacher
        engine.backward(objective.loss(ctx, MicroBatch(experience, 1.0), Phase("student")).loss)
        assert engine.step() == 0.0


def chunk_by_chunk(student: VideoStudent, data: Experience) -> Tensor:
    """x0 at the exit step as the sampler makes it: one chunk at a time on the cache of the clean ones."""
    past, chunks = student.begin(data.text), []
    for frames in (slice(0, 3), slice(3, 6)):
        chunks.append(student.predict_x0(data["x_t"][:, frames], data["sigma"][:, frames], data.text, past))
        past = student.extend(past, data["latents"][:, frames], data.text)
    return torch.cat(chunks, 1)


def gradients(student: VideoStudent) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    return found


def test_student_gradient_equals_the_definition(folder: Path) -> None:
    """The scores written out, their direction sent through every chunk's cached forward. Layers after the last
    attention see no difference; in the others the loss also trains how clean chunks are remembered."""
    objective, ctx, experience = context(folder, "engine.precision=fp64", "seed=1")
    student, fake = (ctx.roles.engines[role].network for role in ("student", "fake_score"))
    teacher = ctx.roles._frozen["teacher"].network
    assert all(p.dtype == torch.float64 for net in (student, teacher, fake) for p in net.parameters())
    with torch.no_grad():
        for n, parameter in enumerate(fake.parameters()):
            parameter += 0.05 * numbers(*parameter.shape, seed=n)
    row = int(experience["sigma"][:, 0].argmax())
    data = experience.candidates(row, row + 1)
    assert data["sigma"].min() > 0.4, "an exit before the last step: the generated video is not the history"
    data.tensors |= {name: data[name].double() for name in ("x_t", "x0", "latents")}
    with ctx.roles.phase("student") as engine:
        out = objective.loss(ctx, MicroBatch(data, 1.0), Phase("student"))
        assert out.metrics["health/on_policy_gap/max"] < 1e-4  # the rollout is kept in fp32
        engine.backward(out.loss)
        found = gradients(student)
        x0 = chunk_by_chunk(student, data)
        torch.testing.assert_close(x0.detach(), data["x0"], rtol=0, atol=1e-5)
        (generator,) = ctx.generators("scores", [row])
        noise = torch.randn(x0.shape[1:], generator=generator)
        u = float(torch.rand((), generator=generator))
        sigma = min(max(2 * u / (1 + u), 0.02), 0.98)
        x_t, level = (1 - sigma) * x0.detach() + sigma * noise, torch.full((1,), sigma)
        with torch.no_grad():
            real, wrong = (net.bidirectional(x_t, level, data.text, output="x0") for net in (teacher, fake))
        for name, first in (("teacher_gap", x0.detach()), ("score_gap", wrong)):
            expected = float((first - real).abs().mean())
            assert float(out.metrics[f"objective/{name}/mean"]) == pytest.approx(expected, rel=1e-4)
        direction = (wrong - real) / (x0.detach() - real).abs().mean() / x0.numel()
        x0.backward(direction)
        cached = gradients(student)
        x0 = student.predict_x0(data["x_t"], data["sigma"], data.text, None, clean=data["latents"])
        x0.backward(direction)
        whole = gradients(student)
    assert found.keys() == cached.keys() == whole.keys()
    last = {"transformer.proj_out.weight", "transformer.blocks.1.ffn.net.2.weight"}
    for name, gradient in found.items():
        expected = cached[name] if name in last else whole[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5 * float(whole[name].abs().max() + 1e-6))
    assert last <= found.keys() and all(found[name].abs().max() > 1e-6 for name in last)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_teacher_computes_in_the_precision_of_the_engine(folder: Path, precision: str) -> None:
    _, ctx, experience = context(folder, f"engine.precision={precision}")
    x_t, sigma = experience["latents"], torch.full((2,), 0.5)
    teacher = VideoStudent.load(folder / "teacher.safetensors")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = teacher.bidirectional(x_t, sigma, experience.text)
    found = ctx.teacher.velocity(x_t.clone().requires_grad_(), sigma, experience.text)
    assert torch.equal(found, expected) and not found.requires_grad


# --- guidance ---

GUIDED = ("teacher.guidance.scale=3.5", "teacher.guidance.negative_prompt=a small circle")


def test_the_real_score_is_guided_and_the_fake_score_is_not(folder: Path) -> None:
    """The student's gradient with the scores written out: x0_real = uncond + s (cond - uncond)."""
    objective, ctx, experience = context(folder, "engine.precision=fp64", *GUIDED)
    student, fake = (ctx.roles.engines[role].network for role in ("student", "fake_score"))
    teacher, data = ctx.roles._frozen["teacher"].network, experience.candidates(0, 1)
    data.tensors |= {name: data[name].double() for name in ("x_t", "x0", "latents")}
    with ctx.roles.phase("student") as engine:
        engine.backward(objective.loss(ctx, MicroBatch(data, 1.0), Phase("student")).loss)
        found = gradients(student)
        x0 = student.predict_x0(data["x_t"], data["sigma"], data.text, None, clean=data["latents"])
        noise, sigma = objective._draw(ctx, data, "scores")
        x_t, uncond = (1 - sigma) * x0.detach() + sigma * noise, ctx.text(["a small circle"])
        with torch.no_grad():
            c, u = (teacher.bidirectional(x_t, sigma, text, output="x0") for text in (data.text, uncond))
            wrong = fake.bidirectional(x_t, sigma, data.text, output="x0")
        real = u + 3.5 * (c - u)
        assert (real - c).abs().max() > 1e-3
        x0.backward((wrong - real) / (x0.detach() - real).abs().mean() / x0.numel())
        expected = gradients(student)
    for name, gradient in found.items():
        scale = float(expected[name].abs().max() + 1e-6)
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * scale)


def test_the_negative_prompt_is_read_with_the_others(folder: Path) -> None:
    """It is encoded before there is a student, in the folder of the run, and `vidalign prepare` encodes it too."""
    recipe = load_recipe(folder / "recipe.yaml", list(GUIDED))
    source = build_prompts(recipe)
    assert asked_prompts(recipe, source).count("a small circle") == 1
    assert "a small circle" not in training_prompts(recipe, source)
    plain = load_recipe(folder / "recipe.yaml", ["teacher.guidance={scale: 1, negative_prompt: a small circle}"])
    assert "a small circle" not in asked_prompts(plain, source), "nothing reads it without guidance"
    teacher = build_context(recipe, build_objective(recipe), Tracker.silent()).teacher
    assert teacher.negative.shape[0] == 1 and teacher.guidance.scale == 3.5


def test_a_recipe_trains(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml")
    trainer = Trainer(recipe, folder / "run")
    trainer.fit()
    student, fake_score = (trainer.ctx.roles.engines[role] for role in ("student", "fake_score"))
    assert (trainer.step, student.steps, fake_score.steps) == (2, 2, 4)
    assert (student.learning_rate, fake_score.learning_rate) == (1e-3, 3e-3)
    lines = (folder / "run" / "metrics.jsonl").read_text()
    for name in ("objective/fake_score_loss/mean", "objective/score_gap/mean", "health/on_policy_gap/max"):
        assert name in lines


def test_a_teacher_that_reads_other_text_is_refused(folder: Path) -> None:
    make_network(folder / "teacher.safetensors", 2, text="umt5")
    with pytest.raises(UserError, match="differ in their text"):
        context(folder)


def test_mistakes_in_the_settings_are_refused(folder: Path) -> None:
    for wrong in ("fake_score.updates=0", "sigma_min=0.99", "shift=0"):
        with pytest.raises(RecipeError):
            load_recipe(folder / "recipe.yaml", [f"objective.{wrong}"])


# --- samples move ---


def test_samples_move_to_the_teachers_distribution() -> None:
    """A one-step generator in the plane, an exact Gaussian teacher, a fake score fitted on the way: mean and spread
    of the samples become the teacher's."""
    torch.manual_seed(0)
    mean, std = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5])
    generator = nn.Linear(2, 2)
    fake_score = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))
    slow = torch.optim.Adam(generator.parameters(), 1e-2, betas=(0.0, 0.9))
    fast = torch.optim.Adam(fake_score.parameters(), 3e-3)

    def noised(x0: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.rand(len(x0), 1) * 0.9 + 0.05
        return (1 - sigma) * x0 + sigma * torch.randn_like(x0), sigma

    def real(x_t: Tensor, sigma: Tensor) -> Tensor:
        gain = (1 - sigma) * std**2 / ((1 - sigma) ** 2 * std**2 + sigma**2)
        return mean + gain * (x_t - (1 - sigma) * mean)

    def fake(x_t: Tensor, sigma: Tensor) -> Tensor:
        return fake_score(torch.cat([x_t, sigma], 1))

    for step in range(1200):
        x0 = generator(torch.randn(256, 2))
        x_t, sigma = noised(x0.detach())
        fast.zero_grad()
        (fake(x_t, sigma) - x0.detach()).square().mean().backward()
        fast.step()
        if step > 200 and step % 3 == 0:
            slow.zero_grad()
            with torch.no_grad():
                x_t, sigma = noised(x0)
                scores = fake(x_t, sigma), real(x_t, sigma)
            distribution_matching_loss(x0, *scores).mean().backward()
            slow.step()
    samples = generator(torch.randn(4000, 2)).detach()
    assert (samples.mean(0) - mean).abs().max() < 0.25
    assert (samples.std(0) - std).abs().max() < 0.25
