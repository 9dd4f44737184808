"""The four methods, one readable file each, and their mixture; `base.py` holds the contract that users subclass."""
