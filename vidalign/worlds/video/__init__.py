"""The embedded video world: coloured shapes under known physics, captions, a scorer and an auditor."""
