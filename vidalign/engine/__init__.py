"""Engines (plain torch or DeepSpeed), weight sets, roles, checkpoints and counter RNG of a training run.

Nothing is imported here, so that a recipe can be read without torch.
"""
