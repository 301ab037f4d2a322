"""The suite for GPUs: ``python -m benchmarks.gpu``."""
