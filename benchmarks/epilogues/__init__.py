"""Benchmarks of epilogues: activations and additions that follow normalization."""
