"""Redness: how red a clip is."""

from dataclasses import dataclass


class Redness:
    name = "redness"
    version = "1"  # change it whenever the numbers change: recipes may pin it

    @dataclass
    class Config:
        factor: float = 1.0

    def __init__(self, config):
        self.config = config

    def score(self, clips, prompts):
        """``[B]`` of clips ``[B, F, 3, H, W]`` in [0, 1], float32, on the device of the server."""
        return {"redness": clips[:, :, 0].mean((1, 2, 3)) * self.config.factor}
