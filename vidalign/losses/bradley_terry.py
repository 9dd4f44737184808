"""Bradley-Terry comparison of teacher and student clips of one prompt (AFD, arXiv 2605.26105).

A scorer D is trained on pairs of one prompt: ``L = -log sigmoid(m)`` with the margin ``m = D(x_T, y) - D(x_hat, y)``.
Exact: ``dL/dm = -sigmoid(-m)``, so a constant added to all scores of a prompt has gradient 0 (a head has no bias), and
``mean sigmoid(-m)`` is how much gradient is left: 1/2 when D cannot separate the two, 0 when it is saturated. At the
optimum ``D = log(pi_teacher / pi_student) + c(y)`` with c(y) arbitrary for each prompt.
"""

from __future__ import annotations

from typing import Literal

import torch

from vidalign.losses.advantages import group_statistics


def bradley_terry_loss(margin: torch.Tensor) -> torch.Tensor:
    """``-log sigmoid(margin)`` like `margin` (any shape), without overflow; margin = winner's minus loser's score."""
    return torch.nn.functional.softplus(-margin)


def gan_loss(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """``-log sigmoid(teacher) - log sigmoid(-student)`` of scores: binary cross-entropy, which compares nothing."""
    return torch.nn.functional.softplus(-teacher) + torch.nn.functional.softplus(student)


def pair_accuracy(margin: torch.Tensor) -> torch.Tensor:
    """1 where the winner's score is the higher one, 1/2 for a tie, else 0; like `margin`."""
    return (margin > 0).to(margin.dtype) + 0.5 * (margin == 0).to(margin.dtype)


def margin_advantage(
    score: torch.Tensor, group_index: torch.Tensor, *, floor: float, std_of: Literal["batch", "group"] = "batch"
) -> torch.Tensor:
    """``A = (D - mean_group(D)) / max(std, floor)``, ``[N]``: the score less its prompt's baseline.

    score, group_index: ``[N]``, over all processes; a score that is not finite gets 0. std is the standard deviation of
    the *centred* scores over the whole batch, because c(y) is no signal, or that of each group. `floor`, in units of D:
    where candidates differ by less, their differences are noise of D and are not blown up to unit size.
    """
    mean, spread = group_statistics(score, group_index)
    places = group_index.to(score.device)
    centred = score - mean[places]
    finite = centred.isfinite()
    centred = torch.where(finite, centred, torch.zeros_like(centred))
    if std_of == "group":
        return centred / spread[places].clamp(min=floor)
    std = (centred.square().sum() / finite.sum().clamp(min=1)).sqrt()
    return centred / std.clamp(min=floor)
