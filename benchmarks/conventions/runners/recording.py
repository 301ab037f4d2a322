"""Training of a library's layers, and the file of what they stored.

The file has arrays ``VARIANT|RANK|SIZES|STEP|NAME`` under the library's own names, ``y`` being the
output of inference and ``file`` the bytes of a file that the library wrote, and ``facts``: JSON
with versions, and for each variant its momentum, its eps, the suffix of its file, or its error.
"""

import functools
import json
import sys
import tempfile
import traceback
from importlib import metadata
from pathlib import Path

import numpy as np

from ..batches import RANKS, SIZES, Batches

STEPS = (1, 5)  # and all of the file


class Layer:
    """A layer of a library. Constructors take the batches' file and a rank, 2 or 4.

    Unless a variant says them, `momentum` and `eps` are the library's defaults, in its meaning, and
    it stores its arrays of these `names`, or its state dictionary.
    """

    ranks = RANKS
    dtype = "float32"
    channels_last = False
    suffix = ""  # of a file of the library's own that it can be saved to
    names = ()  # attributes of `layer`

    @functools.cached_property
    def momentum(self):
        return self.layer.momentum

    @functools.cached_property
    def eps(self):
        return self.layer.eps if hasattr(self.layer, "eps") else self.layer.epsilon

    def __init__(self, given, rank):
        raise NotImplementedError

    def train(self, x):
        """Train on a batch, an array of NumPy."""
        raise NotImplementedError

    def stored(self):
        """What the library keeps, as a dict of arrays."""
        if self.names:
            return {name: self.array(getattr(self.layer, name)) for name in self.names}
        return {name: self.array(value) for name, value in self.layer.state_dict().items()}

    def array(self, value):
        """An array of NumPy of one of the library's."""
        return value.numpy()

    def save(self, path):
        """Write the library's file of the layer, where there is a `suffix`."""
        raise NotImplementedError

    def infer(self, x):
        """The output of inference; None where the library cannot infer here."""
        raise NotImplementedError


class Inference(Layer):
    """A layer of a library that only infers, from the file's parameters and statistics."""

    momentum = None


def double(kind):
    """The variant of a layer in float64."""
    return type(f"{kind.__name__}Double", (kind,), {"dtype": "float64"})


def record(variants, *packages):
    """Train every variant, and write the file that the command line names."""
    source, target = sys.argv[1:]
    given = Batches(source)
    arrays, facts = {}, {"versions": {}, "variants": {}}
    for package in (*packages, "numpy"):
        facts["versions"][package] = metadata.version(package)
    facts["versions"]["python"] = sys.version.split()[0]
    for name, layer in variants.items():
        try:
            facts["variants"][name] = _recorded(name, layer, given, arrays)
        except Exception as error:
            traceback.print_exc()
            text = str(error).strip().splitlines() or [""]
            facts["variants"][name] = {"error": f"{type(error).__name__}: {text[0]}"}
    np.savez(target, facts=json.dumps(facts), **arrays)


def _recorded(name, kind, given, arrays):
    facts = {"channels_last": kind.channels_last, "suffix": kind.suffix}
    for rank in kind.ranks:
        trainings = ("given",) if issubclass(kind, Inference) else SIZES
        for sizes in trainings:
            layer = kind(given, rank)
            facts.update(momentum=_number(layer.momentum), eps=_number(layer.eps))
            if sizes == "given":
                _keep(arrays, f"{name}|{rank}|given|0", layer, given, rank)
                continue
            for step, x in enumerate(given.training(rank, sizes), 1):
                layer.train(_placed(x.astype(kind.dtype), layer, back=False))
                if step in (*STEPS, given.batches):
                    _keep(arrays, f"{name}|{rank}|{sizes}|{step}", layer, given, rank)
            if kind.suffix:
                arrays[f"{name}|{rank}|{sizes}|{given.batches}|file"] = _saved(layer)
    return facts


def _keep(arrays, key, layer, given, rank):
    stored = {k: np.array(v) for k, v in layer.stored().items()}  # copied: it may be moved later
    y = layer.infer(_placed(given.test(rank).astype(layer.dtype), layer, back=False))
    if y is not None:
        stored["y"] = _placed(np.array(y), layer, back=True)
    for name, value in stored.items():
        arrays[f"{key}|{name}"] = value


def _saved(layer):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"layer{layer.suffix}"
        layer.save(str(path))
        return np.frombuffer(path.read_bytes(), np.uint8)


def _placed(x, layer, back):
    if not layer.channels_last:
        return x
    return np.ascontiguousarray(np.moveaxis(x, -1, 1) if back else np.moveaxis(x, 1, -1))


def _number(value):
    return None if value is None else float(value)
