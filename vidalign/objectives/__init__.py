"""Objectives: one readable file a method. `base.py` holds the contract that users subclass."""
