"""The text encoder of the event world: that of the first video world with another vocabulary; a comma is a word."""

from __future__ import annotations

from vidalign.worlds.events.captions import VOCABULARY
from vidalign.worlds.video.text import WorldText


class EventText(WorldText):
    """Features `[B, length, dim]` of captions, the same on every machine; warns about words outside its vocabulary."""

    name = "events"
    vocabulary = VOCABULARY
