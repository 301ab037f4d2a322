"""Calls of the handlers for CUDA in hand-made call frames, as a program of XLA makes them."""

import numpy as np

from ..activations import SLOPE
from ..epilogues import computed
from ..optional import NotHere, import_emulated

MODULE = import_emulated()
TARGETS = MODULE.foreign_targets()
if TARGETS is None:
    raise NotHere("foreign functions for CUDA", "a build with BNEXT_XLA=ON")

ROWS = 5  # of statistics
ROOM = 1 << 18  # of scratch memory, enough for any call here
INVALID_ARGUMENT, INTERNAL = 3, 13  # codes of errors
STREAM = 0xBEEF00


def words(*shape):
    """Numbers in float64 as programs have them."""
    return np.zeros((*shape, 2), np.uint32)


class Frame:
    """One call: arrays by their names, and attributes."""

    def __init__(self, target, rank, arguments, results, **attributes):
        self.target = target
        self.arguments = {k: v for k, v in arguments.items() if v is not None}
        self.results = {k: v for k, v in results.items() if v is not None}
        self.attributes = {
            "activation": "none", "arguments": " ".join(self.arguments), "channel_axis": -1,
            "eps": 1e-5, "negative_slope": SLOPE, "rank": rank, "residual": False,
            "results": " ".join(self.results), **attributes,
        }  # fmt: skip

    def call(self, stage="execute", device=0):
        """Call the handler; give the code of the error, 0 without one, and its text."""

        def described(arrays):
            return [
                (array.dtype.name, array.__array_interface__["data"][0], array.shape)
                for array in arrays.values()
            ]

        return MODULE.call_handler(
            TARGETS[f"bnext_gpu_{self.target}"][stage], stage == "execute",
            described(self.arguments), described(self.results), self.attributes, device, STREAM,
        )  # fmt: skip

    def run(self, **options):
        """Call the handler, which succeeds; give the results by their names."""
        code, text = self.call(**options)
        assert (code, text) == (0, "")
        return self.results


def poisoned(like):
    return np.full(like.shape, np.nan).astype(like.dtype)


def vector(inputs, count=None):
    return np.full(inputs.case.channels * (count or 1), np.nan, computed(inputs.x.dtype.type))


def forward(inputs, target="forward", statistics=(), room=ROOM, **attributes):
    """Build the frame of a forward pass; `statistics` are the mean and the variance, if given."""
    rows = words(ROWS, inputs.case.channels)
    given = dict(zip(("mean", "var"), statistics, strict=False))
    shown = None if given else vector(inputs, 3).reshape(3, -1)
    return Frame(
        target, inputs.x.ndim,
        {"x": inputs.x, **given, "weight": inputs.weight, "bias": inputs.bias,
         "residual": inputs.residual},
        {"y": poisoned(inputs.x), "statistics": rows, "values": shown,
         "workspace": np.full(room, 0xFF, np.uint8)},
        activation=inputs.name or "none", residual=inputs.residual is not None,
        channel_axis=inputs.case.channel_axis, **attributes,
    )  # fmt: skip


def backward(inputs, statistics, target="backward", room=ROOM, **attributes):
    """Build the frame of a backward pass by the statistics of a forward pass."""
    read = inputs.residual if inputs.name else None
    return Frame(
        target, inputs.x.ndim,
        {"x": inputs.x, "dy": inputs.dy, "weight": inputs.weight, "bias": inputs.bias,
         "residual": read, "statistics": statistics},
        {"dx": poisoned(inputs.x), "dweight": vector(inputs), "dbias": vector(inputs),
         "dresidual": None if read is None else poisoned(inputs.x),
         "workspace": np.full(room, 0xFF, np.uint8)},
        activation=inputs.name or "none", residual=inputs.residual is not None,
        channel_axis=inputs.case.channel_axis, **attributes,
    )  # fmt: skip


def gradients(inputs, results):
    """Give dx, dweight, dbias and dresidual, which is dy without an activation."""
    found = [results[name] for name in ("dx", "dweight", "dbias")]
    if inputs.residual is not None:
        found.append(results.get("dresidual", inputs.dy))
    return found
