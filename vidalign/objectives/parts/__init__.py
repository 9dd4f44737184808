"""What several objectives share: replays of rollouts, advantages from scores, tokens, the reduction of metrics."""
