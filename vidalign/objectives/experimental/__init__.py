"""Objectives that stand in no paper."""
