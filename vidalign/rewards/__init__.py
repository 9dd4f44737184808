"""Rewards: what scores a clip for a prompt, and their weighted combination."""
