"""Whole models trained with PyTorch's batch normalization and with bnext's, beside each other."""
