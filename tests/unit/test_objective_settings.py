"""The ranges of objectives' settings: what lies at an end that is included is a setting, what lies beyond is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vidalign.errors import UserError
from vidalign.objectives.afd import AFD
from vidalign.objectives.ar_copo import ARCoPO
from vidalign.objectives.astrolabe import Astrolabe
from vidalign.objectives.baselines.diffusion_nft import DiffusionNFT
from vidalign.objectives.baselines.dmd import DMD, FakeScoreConfig
from vidalign.objectives.baselines.flow_grpo import FlowGRPO
from vidalign.objectives.baselines.gkd import GKD
from vidalign.objectives.baselines.lm_sft import LanguageSFT
from vidalign.objectives.baselines.sft import SFT
from vidalign.objectives.dopd import DOPD, RegimeConfig
from vidalign.objectives.experimental.dopd_video import DOPDVideo, RegimeWeights
from vidalign.objectives.parts.around import Around
from vidalign.objectives.parts.clip_groups import ClipConfig
from vidalign.objectives.parts.reference import KLConfig
from vidalign.students.video import Sampler

ABOVE_0: tuple[list[Any], list[Any]] = ([0, -1.0], [1e-6])
FROM_0: tuple[list[Any], list[Any]] = ([-1e-6], [0, 7])
FROM_1: tuple[list[Any], list[Any]] = ([0], [1])
SHARE: tuple[list[Any], list[Any]] = ([-1e-6, 1.0001], [0, 1])
BELOW_1: tuple[list[Any], list[Any]] = ([-1e-6, 1], [0, 0.999])
NFT = {"beta": ABOVE_0, "advantage_clip": ABOVE_0, "kl_weight": FROM_0, "old_decay": SHARE}
RANGES: list[tuple[Any, dict[str, tuple[list[Any], list[Any]]]]] = [
    (AFD.Config, {**NFT, "updates": FROM_1, "std_floor": ABOVE_0}),
    (DiffusionNFT.Config, {**NFT, "inner_updates": FROM_1}),
    (Astrolabe.Config, {"beta": ABOVE_0, "advantage_clip": ABOVE_0, "inner_updates": FROM_1, "old_decay": SHARE}),
    (Astrolabe.Config, {"sigma_min": ([-0.1, 1.1], [0, 1.0]), "sigma_max": ([-0.1], [0, 1])}),
    (ClipConfig, {"chunks": ([-1], [0, 1])}),
    (ARCoPO.Config, {"anchors": ([0, 13], [1, 12]), "noise_scale": ([0, 1.1], [0.1, 1]), "pivots": ([-1], [0])}),
    (ARCoPO.Config, {"clip": ABOVE_0, "quasi_norm": ABOVE_0, "temperature": ABOVE_0, "inner_updates": FROM_1}),
    (DOPD.Config, {"trim": BELOW_1, "top_k": FROM_1, "beta": SHARE}),
    (DOPDVideo.Config, {"trim": BELOW_1, "privileged_share": SHARE, "block": ([0, 2, 6], [4, 8])}),
    (RegimeConfig, {"weight": FROM_0}),
    (RegimeWeights, dict.fromkeys(("lh", "ll", "ht", "hs"), FROM_0)),
    (FlowGRPO.Config, {"clip": ABOVE_0, "inner_updates": FROM_1}),
    (FakeScoreConfig, {"updates": FROM_1, "learning_rate": ABOVE_0}),
    (DMD.Config, {"shift": ABOVE_0, "sigma_min": ([0, 0.98], [0.01]), "sigma_max": ([0.02, 1.01], [1])}),
    (SFT.Config, {"shift": ABOVE_0, "sigma_floor": FROM_0}),
    (GKD.Config, {"on_policy": SHARE, "beta": SHARE, "top_k": FROM_1}),
    (LanguageSFT.Config, {"privileged_share": SHARE}),
]
CASES = [
    (config, name, value, fits)
    for config, fields in RANGES
    for name, values in fields.items()
    for fits in (False, True)
    for value in values[fits]
]


@pytest.mark.parametrize(
    ("config", "name", "value", "fits"), CASES, ids=[f"{c.__qualname__}-{n}-{v}-{f}" for c, n, v, f in CASES]
)
def test_a_setting_lies_in_its_range(config: Any, name: str, value: Any, fits: bool) -> None:
    if fits:
        assert getattr(config(**{name: value}), name) == value
    else:
        with pytest.raises(ValueError, match=name):
            config(**{name: value})


class Draft:
    """A recipe with one objective, and what is refused of it."""

    def __init__(self, config: Any = None, **rewards: float) -> None:
        objective = SimpleNamespace(name="it", config=config)
        self.recipe = SimpleNamespace(objective=objective, rewards=rewards, reward_weights=rewards)
        self.refused: list[tuple[str, ...]] = []

    def refuse(self, *problem: str) -> None:
        self.refused.append(problem)

    def sound(self, section: str) -> bool:
        return True


def test_a_recipe_without_the_discriminator_that_it_needs_is_refused() -> None:
    both = Draft(discriminator=1.0, motion=1.0)
    for draft, count in ((Draft(motion=0.0), 1), (Draft(discriminator=1.0), 0), (both, 1)):
        AFD.check(draft)  # type: ignore[arg-type]
        assert len(draft.refused) == count
    assert both.refused[0][0] == "'it' does not train on the reward 'motion'"
    draft = Draft()
    AFD.check(draft)  # type: ignore[arg-type]
    what, where, why, fix = draft.refused[0]
    assert (where, fix) == ("rewards", "add rewards: {discriminator: 1.0}")
    assert what == "the discriminator is not among the rewards" and why == "'it' needs it"


def test_what_does_not_fit_is_refused_where_an_objective_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    found = Around(3, {"motion": 1.0}, 1, Sampler(sigmas=[1.0]))
    monkeypatch.setattr("vidalign.objectives.parts.around.around", lambda draft: asked.append(draft) or found)
    draft = Draft()
    LanguageSFT.check_fit(draft)  # type: ignore[arg-type]
    assert asked == draft.refused == []
    draft = Draft(FlowGRPO.Config())
    FlowGRPO.check_fit(draft)  # type: ignore[arg-type]
    assert asked == [draft] and [problem[1] for problem in draft.refused] == ["student"]
    assert draft.refused[0][0] == "flow_grpo cannot train a sampler of [1, 1, 1] steps a chunk"


ONE, TWO, OTHER = Sampler(sigmas=[1.0]), Sampler(sigmas=[1.0, 0.5]), Sampler(sigmas=[1.0, 0.5], first_sigmas=[1.0])


@pytest.mark.parametrize(
    ("chunks", "sampler", "fits"),
    [
        (3, TWO, True),
        (3, ONE, False),
        (3, OTHER, False),
        (1, OTHER, False),
        (1, TWO, True),
        (0, ONE, True),
        (3, None, True),
    ],
)
def test_flow_grpo_needs_two_steps_in_every_chunk(chunks: int, sampler: Sampler | None, fits: bool) -> None:
    objective = FlowGRPO(FlowGRPO.Config())
    if fits:
        objective.fit(Around(chunks, {}, 1, sampler))
    else:
        with pytest.raises(UserError, match="flow_grpo cannot train a sampler"):
            objective.fit(Around(chunks, {}, 1, sampler))


KL, MULTISTEP = KLConfig(mode="selective"), Sampler(sigmas=[0.999, 0.5], solver="unipc")
FITS: list[tuple[Any, Any, Around, str]] = [
    (AFD, AFD.Config(sigma_max=0.4), Around(3, {}, 1, TWO), "no noise level"),
    (AFD, AFD.Config(sigma_max=0.5), Around(3, {}, 1, TWO), ""),
    (FlowGRPO, FlowGRPO.Config(), Around(3, {}, 1, MULTISTEP), "flow_grpo cannot train a sampler with solver 'unipc'"),
    (ARCoPO, ARCoPO.Config(neighbours="all"), Around(3, {}, 1, MULTISTEP), "neighbours: all cannot train a sampler"),
    (ARCoPO, ARCoPO.Config(neighbours="all"), Around(3, {}, 1, TWO), ""),
    (ARCoPO, ARCoPO.Config(neighbours="initial"), Around(3, {}, 1, MULTISTEP), ""),
    (AFD, AFD.Config(sigma_max=0.4), Around(3, {}, 1, None), ""),
    (Astrolabe, Astrolabe.Config(sigma_max=0.4), Around(3, {}, 1, TWO), "no noise level"),
    (Astrolabe, Astrolabe.Config(sigma_min=0.6, sigma_max=0.9), Around(3, {}, 1, TWO), "no noise level"),
    (Astrolabe, Astrolabe.Config(sigma_min=0.5, sigma_max=0.5), Around(3, {}, 1, TWO), ""),
    (Astrolabe, Astrolabe.Config(sigma_max=0.4), Around(3, {}, 1, None), ""),
    (Astrolabe, Astrolabe.Config(clip=ClipConfig(chunks=4)), Around(3, {}, 1, None), "does not fit into a video of 3"),
    (Astrolabe, Astrolabe.Config(clip=ClipConfig(chunks=3)), Around(3, {}, 1, None), ""),
    (Astrolabe, Astrolabe.Config(clip=ClipConfig(chunks=4)), Around(0, (), 1, None), ""),
    (Astrolabe, Astrolabe.Config(kl=KL), Around(3, {"motion": 1.0}, 1, None), "two rewards or more"),
    (Astrolabe, Astrolabe.Config(kl=KL), Around(3, ("motion", "other"), 1, None), ""),
    (Astrolabe, Astrolabe.Config(), Around(3, {"motion": 1.0}, 1, None), ""),
    (ARCoPO, ARCoPO.Config(pivots=4), Around(3, {}, 1, None), "cannot be one of 4 chunks"),
    (ARCoPO, ARCoPO.Config(pivots=3), Around(3, {}, 1, None), ""),
    (ARCoPO, ARCoPO.Config(pivots=4), Around(0, (), 1, None), ""),
    (DOPD, DOPD.Config(privilege="shuffled"), Around(0, (), 1, None), "needs another prompt"),
    (DOPD, DOPD.Config(privilege="shuffled"), Around(0, (), 2, None), ""),
    (DOPD, DOPD.Config(), Around(0, (), 1, None), ""),
    (DOPDVideo, DOPDVideo.Config(pairing="shuffled"), Around(0, (), 1, None), "needs another prompt"),
    (DOPDVideo, DOPDVideo.Config(pairing="shuffled"), Around(0, (), 2, None), ""),
    (DOPDVideo, DOPDVideo.Config(), Around(0, (), 1, None), ""),
]


@pytest.mark.parametrize(("objective", "config", "around", "problem"), FITS)
def test_settings_fit_what_surrounds_them(objective: Any, config: Any, around: Around, problem: str) -> None:
    if problem:
        with pytest.raises(UserError, match=problem):
            objective(config).fit(around)
    else:
        objective(config).fit(around)
