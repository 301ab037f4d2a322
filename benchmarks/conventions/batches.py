"""The batches that every library is trained on, in one .npz file.

Channels lie at axis 1. `SIZES` are rows per batch; a batch of rank 4 has `PLANE` values per row and
channel. Inference-only libraries get the parameters and statistics in the file.
"""

import numpy as np

CHANNELS = 3
PLANE = (3, 5)
RANKS = (2, 4)
BATCHES = 300
SIZES = {"4": (4,), "32": (32,), "unequal": (5, 32, 9, 2, 17)}
SEED = 20261128


def rows_of(sizes, batches):
    """Rows of each batch of a training."""
    cycle = SIZES[sizes]
    return [cycle[i % len(cycle)] for i in range(batches)]


def values_per_channel(sizes, rank):
    """Values per channel of every batch, or None where batches differ."""
    if len(SIZES[sizes]) > 1:
        return None
    return SIZES[sizes][0] * (int(np.prod(PLANE)) if rank == 4 else 1)


def write(path, batches=BATCHES):
    """Write so many batches of each kind to a file."""
    rng = np.random.default_rng(SEED)
    center, spread = np.array([1.3, -1.6, 0.9]), np.array([0.7, 1.6, 1.1])

    def samples(rows, rank, drift):
        shape = (rows, *(PLANE if rank == 4 else ()), CHANNELS)
        x = (center + drift + spread * rng.normal(size=shape)).astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(x, -1, 1))

    arrays = {
        "batches": np.array(batches),
        "weight": rng.uniform(0.5, 2, CHANNELS).astype(np.float32),
        "bias": rng.normal(size=CHANNELS).astype(np.float32),
        "mean": rng.normal(size=CHANNELS).astype(np.float32),
        "var": rng.uniform(0.2, 3, CHANNELS).astype(np.float32),
    }
    for rank in RANKS:
        arrays[f"test/{rank}"] = samples(7, rank, 0.0)
        for sizes in SIZES:
            each = [
                samples(n, rank, 0.1 * rng.normal(size=CHANNELS)) for n in rows_of(sizes, batches)
            ]
            arrays[f"x/{rank}/{sizes}"] = np.concatenate(each)
    np.savez(path, **arrays)


class Batches:
    """The batches of a file."""

    def __init__(self, path):
        with np.load(path) as file:
            self._arrays = {name: file[name] for name in file.files}
        self.weight, self.bias = self._arrays["weight"], self._arrays["bias"]
        self.batches = int(self._arrays["batches"])
        self.mean, self.var = self._arrays["mean"], self._arrays["var"]

    def training(self, rank, sizes):
        """The batches of a training, in order."""
        return np.split(
            self._arrays[f"x/{rank}/{sizes}"], np.cumsum(rows_of(sizes, self.batches))[:-1]
        )

    def test(self, rank):
        """The input of inference."""
        return self._arrays[f"test/{rank}"]
