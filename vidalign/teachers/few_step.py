"""A frozen few-step causal network as teacher, with the student's flow parameterisation and noise levels.

A step-distilled or aligned student, or the student's own weights with privileged input. (Matching a few-step student
to the posterior mean of a multi-step model would blur it.)
"""

from __future__ import annotations

from vidalign.teachers.network import NetworkTeacher


class FewStepTeacher(NetworkTeacher):
    """A frozen causal few-step video network. Offers ``few_step``: the causal velocity of ``model``."""

    offers = ("few_step",)
    shared = (*NetworkTeacher.shared, "sampler.sigmas", "sampler.first_sigmas", "cache.chunk_frames")
