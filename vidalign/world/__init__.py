"""The embedded video world: coloured shapes under known physics, with captions, a scorer and a held-out auditor."""
