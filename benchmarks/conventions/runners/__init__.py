"""Runners: one file for each library, run in an environment that has that library and NumPy.

    python -m benchmarks.conventions.runners.NAME BATCHES.npz OUT.npz

A runner declares variants of the library's layer, subclasses of `recording.Layer`, and `record`
trains them on the file's batches and writes what they store.
"""
