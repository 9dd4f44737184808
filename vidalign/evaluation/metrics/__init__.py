"""Metrics of the benchmark: what judges finished clips. `base.py` holds the contract."""
