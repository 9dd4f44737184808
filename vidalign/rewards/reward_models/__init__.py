"""Reward models on Qwen2-VL: VideoReward and HPSv3, loaded strictly from their published files."""
