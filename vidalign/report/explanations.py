"""What a logged series is and how to read it, in one line each."""

from __future__ import annotations

from fnmatch import fnmatchcase

EXPLANATIONS = {
    "reward/*group_std": "Spread of the rewards inside a group. Without spread there is no signal to learn from.",
    "reward/discriminator*": "What the discriminator gives the student's clips; it is trained too, so its scale moves.",
    "reward/*mean": "What training maximises, on training prompts. A rise here alone may be reward hacking.",
    "health/held_out*": "Scores of held-out prompts during training. The held-out judge should rise with the rewards.",
    "health/grad_norm/*": "Norm of the gradient before clipping. Zero: nothing is learned. Growth: instability.",
    "health/*grad_norm/*": "Norm of the gradient of a network that is trained beside the student.",
    "health/motion/*": "Mean change between neighbouring frames. Towards zero the clips freeze.",
    "health/on_policy_gap/*": "Difference between the student that made the clips and the one that learns from them.",
    "health/low_spread_groups/*": "Share of groups whose rewards hardly differ.",
    "health/zero_std_groups/*": "Share of groups whose rewards are all equal; they teach nothing.",
    "health/reward_nan/*": "Share of rewards that are not a number.",
    "health/skipped_updates": "Updates left out because their gradient was not finite.",
    "health/at_length_limit/*": "Share of responses that were cut at the longest length.",
    "health/response_tokens/*": "Mean length of the responses, in tokens.",
    "health/discriminator_pair_accuracy*": "Share of pairs that it ranks right. 0.5 is chance; 1 is too easy.",
    "health/discriminator_held_out_accuracy*": "The same on pairs that it was not trained on.",
    "health/discriminator_margin*": "Margin between teacher and student clips, as a probability. 0.5: not separated.",
    "objective/*loss*": "The loss that is minimised. Its level says little: rewards and judges say what it brought.",
    "objective/*policy*": "The policy part of the loss, without regularisation.",
    "objective/kl*": "Distance from the reference student. Fast growth means that the student leaves it.",
    "objective/*advantage*": "Size of the advantages, the rewards relative to those of their group.",
    "objective/*alpha_*": "Mean weight of the rewards at this noise level: 1 for the best, 0 for the worst clips.",
    "objective/capability/*": "Size of what the teacher can do and the student with the same hints cannot.",
    "objective/information/*": "Size of what the hints change in the student's own prediction.",
    "objective/consistency/*": "How well the hints explain what the student generated: 1 is fully.",
    "objective/endorsed/*": "Share of the items in which the rewards prefer the teacher.",
    "objective/confidence_threshold/*": "Confidence from which on an item counts as sure.",
    "objective/margin/*": "Score of teacher clips minus that of student clips.",
    "objective/rho/*": "Threshold of the selective divergence; it follows the mean gap between the rewards' rankings.",
    "objective/selected/*": "Share of clips that the divergence from the reference holds back.",
    "health/adapter_layers": "Layers that carry an adapter.",
    "health/discriminator_warm_up_steps": "Steps that the discriminator was trained alone before.",
    "objective/reference_age/*": "Steps since the reference student was renewed.",
    "objective/on_policy/*": "Share of responses that the student wrote itself.",
    "objective/clip_fraction/*": "Share of updates that the ratio clipping cut off.",
    "objective/ratio_gap/*": "Largest distance of the likelihood ratio from one.",
    "objective/*entropy*": "Entropy of the next token, in nats. Towards zero the answers stop to vary.",
    "objective/token_accuracy/*": "Share of tokens that the student would choose as the target does.",
    "objective/*share_*": "Share of the items that this route gets.",
    "objective/*flow_matching*": "Squared error of the predicted velocity on teacher or true clips.",
    "objective/*teacher_gap/*": "Distance between student and teacher predictions.",
    "objective/*score_gap/*": "Distance between the real and the fake score, which distillation closes.",
    "objective/gap_from_*": "Share of the items whose gap lies between this size and the next.",
    "objective/gap_threshold/*": "Gap from which on an item counts as large.",
    "objective/*gap*": "Distance between the privileged and the plain prediction.",
    "perf/*learning_rate": "Learning rate of the step.",
    "perf/step/seconds": "Wall time of a whole step.",
    "perf/collect/seconds": "Time to generate and judge what the step learns from.",
    "perf/judge/seconds": "Time that the step waited for its judges.",
    "perf/student/seconds": "Time of the student's forward, backward and update.",
    "perf/held_out/seconds": "Time of the held-out judgement during training.",
    "perf/score/seconds": "Time that the rewards took.",
    "perf/score/hidden": "Share of that time that ran beside generation and cost nothing.",
    "perf/*seconds": "Time of this part of a step.",
    "perf/*memory*": "Peak of the memory of the accelerator.",
}
"""Pattern -> line; the first pattern that fits counts."""


def explain(name: str) -> str:
    """The line for a series such as `objective/kl/mean`; empty for one that a plugin brought."""
    return next((text for pattern, text in EXPLANATIONS.items() if fnmatchcase(name, pattern)), "")
