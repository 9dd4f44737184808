"""The ranges of objectives' settings: what lies at an end that is included is a setting, what lies beyond is none."""

from __future__ import annotations

from typing import Any

import pytest

from vidalign.objectives.afd import AFD
from vidalign.objectives.ar_copo import ARCoPO
from vidalign.objectives.astrolabe import Astrolabe
from vidalign.objectives.baselines.diffusion_nft import DiffusionNFT
from vidalign.objectives.baselines.dmd import DMD, FakeScoreConfig
from vidalign.objectives.baselines.flow_grpo import FlowGRPO
from vidalign.objectives.baselines.gkd import GKD
from vidalign.objectives.baselines.lm_sft import LanguageSFT
from vidalign.objectives.dopd import DOPD, RegimeConfig
from vidalign.objectives.experimental.dopd_video import DOPDVideo, RegimeWeights
from vidalign.objectives.parts.clip_groups import ClipConfig

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
