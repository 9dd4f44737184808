"""Distribution matching: a loss whose gradient is the difference of two scores (DMD, 2311.18828; DMD2, 2405.14867).

The generated video x0 is noised to ``x_t = (1 - sigma) x0 + sigma noise`` and denoised by two frozen networks:
`real`, which knows the teacher's distribution, and `fake`, which knows the generator's. As
``score = -(x_t - (1 - sigma) x0_hat) / sigma^2``, the gradient of KL(generated || teacher) points along
``score_fake - score_real``, a multiple of ``x0_fake - x0_real``; DMD (equation 8) divides by how far the teacher's
denoising moves the sample, so that every noise level counts alike.
"""

from __future__ import annotations

import torch


def distribution_matching_direction(
    x0: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *, floor: float = 1e-5
) -> torch.Tensor:
    """``(x0_fake - x0_real) / mean|x0 - x0_real|``, ``[N, ...]``, detached, in fp32 or wider.

    x0: the generated sample. fake, real: the two predictions of x0 from the same x_t; all ``[N, ...]``.
    The mean runs over all of a sample and is at least `floor`. A descent step along it moves x0 towards `real`
    and away from `fake`; zero exactly where the two agree.
    """
    dtype = torch.promote_types(x0.dtype, torch.float32)
    x0, fake, real = (x.detach().to(dtype) for x in (x0, fake, real))
    normaliser = (x0 - real).abs().flatten(1).mean(1).clamp(min=floor)
    return (fake - real) / normaliser.reshape(-1, *[1] * (x0.ndim - 1))


def distribution_matching_loss(
    x0: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *, floor: float = 1e-5
) -> torch.Tensor:
    """Loss of each sample, ``[N]``; arguments as in `distribution_matching_direction`, only `x0` carries gradient.

    With direction g and D elements a sample: ``L = |x0 - sg[x0] + g|^2 / 2D``. Its value is ``|g|^2 / 2D`` and its
    gradient ``dL/dx0 = g / D``, both without rounding (``|x0 - sg[x0 - g]|^2`` of the released code cancels digits).
    """
    g = distribution_matching_direction(x0, fake, real, floor=floor)
    precise = x0.to(g.dtype)
    return 0.5 * (precise - precise.detach() + g).square().flatten(1).mean(1)
