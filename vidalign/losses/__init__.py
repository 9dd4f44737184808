"""Losses: pure tensor functions, one small file a family."""
