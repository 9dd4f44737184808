"""The event world: endless motions, random events, captions of two clauses; scorer, auditor, teacher, text encoder."""
