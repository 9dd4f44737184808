"""One evaluator for training, `evaluate`, benchmarks and merging: outputs of a student, judged by rewards and metrics."""
