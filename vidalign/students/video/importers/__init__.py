"""Public causal Wan checkpoints made into students, and back: names, files, sizes, LoRA.

The families hold stock Wan2.1 weights under the original names (825 tensors for 1.3B, 1095 for 14B); nothing causal
is in the state dict. `vidalign.workflows.import_` puts the parts together.
"""
