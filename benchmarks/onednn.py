"""oneDNN's batch normalization on the same arrays, through native/onednn.cpp."""

import ctypes
import time

import numpy as np

import bnext
from benchmarks.shared_libraries import UnavailableError, onednn
from bnext.bench.cases import ALIGNMENT, EPS

OPERATIONS = ("forward", "backward", "inference")  # in the order of native/onednn.cpp

# The candidates for "its best layout", chosen by trial for each operation of each case.
FORMATS = ("blocks of 16 channels", "channels last", "blocks of 8 channels", "planar")
# For large arrays only the first two: the others win, if at all, where the caches hold the data,
# and reordering takes seconds.
LARGE, FORMATS_OF_LARGE = 300e6, FORMATS[:2]
TRIALS, LONG_TRIAL = 3, 0.01  # seconds; a longer operation has one trial


class Arrays(ctypes.Structure):
    """The struct of that name in native/onednn.cpp."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("x", "dy", "out", "weight", "bias", "given_mean", "given_var"),
            *("mean", "var", "dweight", "dbias"),
        )
    )


class Layer:
    """One case in one of oneDNN's formats, with the arrays bound to it.

    If the case has another format, the data is reordered here, outside any timing, and `output`
    reorders the output back. With `relu`, a ReLU is fused to it.
    """

    def __init__(self, data, format, *, relu=False):
        self.native, self.data, self.format = onednn(), data, format
        case = data.case
        threads = bnext.get_num_threads()
        if (used := self.native.onednn_set_threads(threads)) != threads:
            raise UnavailableError(
                f"oneDNN's OpenMP gives {used} threads where {threads} were asked for"
            )
        shape = (ctypes.c_int64 * len(case.shape))(*case.shape)
        self.layer = self.native.onednn_create(
            shape, len(case.shape), case.dtype.encode(), format.encode(), EPS, relu
        )
        if not self.layer:
            raise UnavailableError(f"oneDNN, {format}: {self.error()}")
        channels = case.shape[1]
        self.mean, self.var, self.dweight, self.dbias = np.zeros((4, channels), np.float32)
        self.own = format != own_format(case)
        self.x, self.dy, self.out = data.x, data.dy, data.out
        if self.own:
            self.x, self.dy, self.out = (self._empty() for _ in range(3))
            self._reorder(data.x, self.x, back=False)
            self._reorder(data.dy, self.dy, back=False)
            self.out.fill(0)
        bound = Arrays(
            **{name: getattr(self, name).ctypes.data for name in ("x", "dy", "out")},
            **{name: getattr(data, name).ctypes.data for name in ("weight", "bias")},
            given_mean=data.mean.ctypes.data,
            given_var=data.var.ctypes.data,
            **{n: getattr(self, n).ctypes.data for n in ("mean", "var", "dweight", "dbias")},
        )
        self._check(self.native.onednn_bind(self.layer, ctypes.byref(bound)))
        self._check(self.native.onednn_run(self.layer, 0))  # backward needs the statistics

    def __del__(self):
        if getattr(self, "layer", None):
            self.native.onednn_destroy(self.layer)

    def error(self):
        return self.native.onednn_error().decode()

    def implementation(self, operation):
        """oneDNN's name of the chosen code."""
        index = OPERATIONS.index(operation)
        return self.native.onednn_implementation(self.layer, index).decode()

    def call(self, operation, pages):
        """A call of no arguments."""
        run = self.native.onednn_run if pages == "warm" else self.native.onednn_run_fresh
        index = OPERATIONS.index(operation)
        # The closure keeps `self`, and with it the arrays, alive.
        return lambda: run(self.layer, index) or self._check(0)

    def output(self):
        """The output of the latest warm call, in the case's format."""
        if self.own:
            self._reorder(self.out, self.data.out, back=True)
        return self.data.out

    def _check(self, done):
        if not done:
            raise UnavailableError(f"oneDNN, {self.format}: {self.error()}")

    def _empty(self):
        """An array for this layer's format, aligned for oneDNN."""
        nbytes = self.native.onednn_bytes(self.layer)
        raw = np.empty(nbytes + ALIGNMENT, np.uint8)
        begin = -raw.ctypes.data % ALIGNMENT
        return raw[begin : begin + nbytes]

    def _reorder(self, source, target, *, back):
        last = own_format(self.data.case) == "channels last"
        pointers = source.ctypes.data, target.ctypes.data
        self._check(self.native.onednn_reorder(self.layer, *pointers, last, back))


def own_format(case):
    """The format of the case's arrays."""
    return "channels last" if case.channels_last else "planar"


def onednn_calls(data):
    """Prepare oneDNN on the arrays in their own format."""
    layer = Layer(data, own_format(data.case))
    return {(op, pages): layer.call(op, pages) for op in OPERATIONS for pages in ("warm", "fresh")}


def fastest_layers(data, *, relu=False):
    """The fastest format by trial, for each operation: a dictionary of layers."""
    fastest, shortest = {}, {}
    for format in FORMATS_OF_LARGE if data.case.nbytes > LARGE else FORMATS:
        try:
            layer = Layer(data, format, relu=relu)
        except UnavailableError:
            continue
        if layer.implementation("forward").startswith("ref"):  # orders of magnitude slower
            continue
        for operation in OPERATIONS:
            seconds = _time(layer.call(operation, "warm"))
            if seconds < shortest.get(operation, np.inf):
                fastest[operation], shortest[operation] = layer, seconds
    if not fastest:
        raise UnavailableError("oneDNN has none of its formats for this case")
    return fastest


def _time(call):
    call()
    times = []
    while len(times) < TRIALS and sum(times) < LONG_TRIAL:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def best_calls(data, note=None, *, relu=False):
    """Prepare oneDNN on data reordered to its fastest format.

    Reordering is not in the time: a network that runs in oneDNN keeps its tensors in such a layout.
    `note(operation, format, implementation)` receives the choice.
    """
    if data.x.ndim == 2:
        raise UnavailableError("rows have one layout")
    if data.case.channels_last:
        raise UnavailableError("stands beside the planar case of the same shape")
    calls = {}
    for operation, layer in fastest_layers(data, relu=relu).items():
        if note:
            note(operation, layer.format, layer.implementation(operation))
        for pages in ("warm", "fresh"):
            calls[operation, pages] = layer.call(operation, pages)
    return calls
