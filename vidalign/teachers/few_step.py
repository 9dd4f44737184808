"""A frozen few-step causal network as teacher, with the student's flow parameterisation and noise levels.

A step-distilled or aligned student, or the student's own weights with privileged input. (Matching a few-step student
to the posterior mean of a multi-step model would blur it.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidalign.teachers.network import NetworkTeacher

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft


class FewStepTeacher(NetworkTeacher):
    """A frozen causal few-step video network. Offers ``few_step``: the causal velocity of ``model``."""

    offers = ("few_step",)
    shared = (*NetworkTeacher.shared, "sampler.sigmas", "sampler.first_sigmas", "cache.chunk_frames")

    @classmethod
    def check(cls, draft: Draft) -> None:
        """See `NetworkTeacher.check`; a bidirectional network is refused."""
        super().check(draft)
        spec = cls.written(draft)
        if spec is not None and spec.bidirectional:
            draft.refuse(
                f"{draft.settings('teacher', cls.Config).path!r}, a bidirectional network, has no few-step velocity",
                "teacher.path",
                "its prediction is the mean of all clips, and a few-step student that matches it is blurred",
                "name a causal few-step network, or use objective.name: dmd with teacher.name: model",
            )
