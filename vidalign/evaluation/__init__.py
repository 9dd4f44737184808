"""One evaluator for training, `evaluate`, benchmarks and merging: outputs judged by rewards and metrics."""
