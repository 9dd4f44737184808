"""Judges of the embedded world: trained rewards (scorer) and the held-out auditor, per clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidalign.worlds.video.auditor import audit
from vidalign.worlds.video.captions import is_caption
from vidalign.worlds.video.scorer import SCORES, score

TRAINED = "trained rewards"
AUDITOR = "held-out auditor"


def judge_world(clips: torch.Tensor, prompts: Sequence[str]) -> dict[tuple[str, str], torch.Tensor]:
    """Every metric ``[B]`` of clips ``[B, F, 3, H, W]`` in [0, 1], keyed by (judge, metric).

    ``composite`` of the trained rewards is their plain mean, that of the auditor its own. Prompts that are no
    captions of the world have no known answer and must be left out before.
    """
    assert all(is_caption(prompt) for prompt in prompts), "the world judges its own captions only"
    scores = score(clips, prompts)
    trained = {name: scores[name] for name in ("text_alignment", "motion_quality", "visual_quality")}
    trained["composite"] = torch.stack(list(trained.values())).mean(0)
    trained["strict pass"] = scores["strict_pass"].to(trained["composite"].dtype)
    assert set(trained) - {"composite", "strict pass"} <= set(SCORES), "the scorer names its rewards"
    metrics = {(TRAINED, name): values for name, values in trained.items()}
    return metrics | {(AUDITOR, name): values.float() for name, values in audit(clips, prompts).items()}
