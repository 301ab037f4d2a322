"""What `bnext._cuda` promises, done by NumPy at the addresses that it is given.

So the way from an array to a launch and back can be tested where there is neither a GPU nor a build
with kernels. Values come from tests/reference.py; nothing is shared with the kernels.
"""

import ctypes
import math
import types

import ml_dtypes
import numpy as np

from bnext.rows import ROW, Statistics, unbound

from .. import activations, reference

DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float16", "bfloat16")}
DTYPES |= {name: np.dtype(name) for name in ("float32", "float64")}
OPERANDS = {  # in the order of csrc/cuda/table.hpp
    "forward": "x y", "normalize": "x y", "collect_stats": "x", "backward": "x dy dx",
    "backward_fixed": "x dy dx", "backward_reduce": "x dy", "backward_apply": "x dy dx",
}  # fmt: skip
OPERANDS = {operation: names.split() for operation, names in OPERANDS.items()}
WRITTEN = ("y", "dx")
ACTIVATIONS = (  # as csrc/core/activation.hpp numbers them
    None, "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "gelu_tanh", "sigmoid",
    "tanh",
)  # fmt: skip


def operands(operation, residual):
    """The names of a call's data: inputs, the residual, the result, dresidual."""
    read = [name for name in OPERANDS[operation] if name not in WRITTEN]
    written = [name for name in OPERANDS[operation] if name in WRITTEN]
    if not residual:
        return read + written
    return [*read, "residual", *written, *(["dresidual"] if "dx" in written else [])]


DTYPE_NAMES = ("float32", "float64", "float16", "bfloat16")  # as csrc/core/dtype.hpp numbers them
LAYOUT, VALUE, RUNTIME = range(3)  # what a call can fail of, as csrc/cuda/table.hpp numbers it


# The structures of csrc/cuda/table.hpp.
class _Addresses(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in (
            "x", "y", "dy", "dx", "weight", "bias", "mean", "var", "running_mean", "running_var",
            "num_batches_tracked", "statistics", "sums", "dweight", "dbias", "workspace",
            "residual", "dresidual", "of_z",
        )
    ]  # fmt: skip


class _Scalars(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("eps", "momentum", "correction", "count")),
        ("wide_statistics", ctypes.c_bool),
        ("negative_slope", ctypes.c_double),
        ("activation", ctypes.c_int32),
    ]


class _KernelCall(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("operation", "dtype", "device", "operands")),
        ("rank", ctypes.c_int64),
        ("channel_axis", ctypes.c_int64),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64) * 5),
        ("at", _Addresses),
        ("scalars", _Scalars),
        ("stream", ctypes.c_void_p),
        ("caller", ctypes.c_void_p),
        ("allocate", ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("fail", ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p)),
        ("groups", ctypes.c_int64),  # 0: norms of cells are for the kernels alone
    ]


_Run = ctypes.PYFUNCTYPE(None, ctypes.POINTER(_KernelCall))


class _KernelTable(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_int32), ("run", _Run)]


def _capsule(table):
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    return new(ctypes.addressof(table), b"bnext.kernels", None)


class _Memory:
    def __init__(self, interface):
        self.__array_interface__ = interface


def at(address, shape, dtype, strides=None):
    """The array of that dtype at that address; strides in elements."""
    dtype = DTYPES[dtype]
    steps = None if strides is None else tuple(stride * dtype.itemsize for stride in strides)
    # NumPy's protocol has no word for bfloat16: as bits first.
    bits = f"<u{dtype.itemsize}"
    interface = {"version": 3, "typestr": bits, "shape": tuple(shape), "strides": steps}
    return np.asarray(_Memory(interface | {"data": (address, False)})).view(dtype)


def refusal(shape, operands, channel_axis):
    """Why the operands do not fit without a copy, as csrc/core/problem.hpp has it; or None."""
    axes = [axis for axis in range(len(shape)) if axis != channel_axis and shape[axis] != 1]
    axes.sort(key=lambda axis: -abs(operands[0][axis]))
    merged = []  # extent, and a stride for each operand
    for axis in axes:
        extent, steps = shape[axis], [strides[axis] for strides in operands]
        if merged and merged[-1][1] == [step * extent for step in steps]:
            merged[-1] = (merged[-1][0] * extent, steps)
        else:
            merged.append((extent, steps))
    if len(merged) > 2:
        return "layout: the batch axes do not merge into an outer and an inner one"
    contiguous = bool(merged) and all(step == 1 for step in merged[-1][1])
    of_channels = [strides[channel_axis] for strides in operands]
    if contiguous or shape[channel_axis] == 1 or all(step == 1 for step in of_channels):
        return None
    return "layout: neither the innermost axis nor the channels are contiguous"


class StandIn:
    """The functions of `bnext._cuda`; `launches` has what was launched on which stream."""

    class LayoutError(ValueError):
        """Arrays have to be copied first."""

    def __init__(self, devices=1, problems=(), workspace_bytes=1000):
        self.devices = devices
        self.problems = dict(problems)
        self.workspace_bytes = workspace_bytes
        self.launches = []
        self.plans = []
        self.path = None
        self._table = _KernelTable(2, _Run(self._run))  # of DLPack's kDLCUDA
        self.table = _capsule(self._table)

    def device_count(self):
        return self.devices

    def unavailable_reason(self):
        return "" if self.devices else "no CUDA driver was found"

    def device_name(self, device):
        return f"stand-in {device}"

    def device_problem(self, device):
        return self.problems.get(device, "")

    def device_of(self, address):
        assert address
        return 0

    def limits(self, device):
        return f"limits of {device}"

    def environment(self):
        return {"synchronous": False, "reserved_multiprocessors": 0}

    def architectures(self):
        return ["sm_00"]

    def operations(self):
        return list(OPERANDS)

    def paths(self, operation):
        return ["two_kernels"] if operation == "collect_stats" else ["resident", "two_kernels"]

    def force_path(self, path):
        before, self.path = self.path, path
        return before

    def _run(self, pointer):
        """A call of the table."""
        call = pointer.contents
        try:
            operation = list(OPERANDS)[call.operation]
            given = {name: getattr(call.at, name) or 0 for name, _ in _Addresses._fields_}
            given |= {name: getattr(call.scalars, name) for name, _ in _Scalars._fields_}
            residual = bool(given["residual"])
            names = operands(operation, residual)
            assert call.operands == len(names)
            plan = self.plan(
                operation, DTYPE_NAMES[call.dtype], tuple(call.shape[: call.rank]),
                [call.strides[k][: call.rank] for k in range(call.operands)],
                [given[name] for name in names], call.channel_axis, self.limits(call.device),
                residual=residual,
            )  # fmt: skip
            assert not given.pop("workspace")
            if self.workspace_bytes:
                given["workspace"] = call.allocate(call.caller, self.workspace_bytes)
            self.launch(plan, call.device, call.stream or 0, **given)
        except self.LayoutError as error:
            call.fail(call.caller, LAYOUT, str(error).encode())
        except Exception as error:
            call.fail(call.caller, RUNTIME, repr(error).encode())

    def plan(
        self, operation, dtype, shape, strides, addresses, channel_axis, limits, path=None, *,
        activated=False, residual=False,
    ):  # fmt: skip
        names = operands(operation, residual)
        if path is None and self.path in self.paths(operation):
            path = self.path
        assert math.prod(shape) > 0
        assert 0 <= channel_axis < len(shape)
        assert len(strides) == len(addresses) == len(names)
        assert all(address % DTYPES[dtype].itemsize == 0 for address in addresses)
        assert path is None or path in self.paths(operation)
        if why := refusal(shape, strides, channel_axis):
            raise self.LayoutError(why)
        plan = types.SimpleNamespace(
            operation=operation, dtype=dtype, shape=tuple(shape), channel_axis=channel_axis,
            strides=dict(zip(names, strides, strict=True)), limits=limits,
            addresses=dict(zip(names, addresses, strict=True)), path=path,
            workspace_bytes=self.workspace_bytes,
        )  # fmt: skip
        self.plans.append(plan)
        return plan

    def launch(self, plan, device, stream, *, workspace=0, eps=0.0, **given):
        assert plan.limits == f"limits of {device}"
        assert plan.addresses == {name: given[name] for name in plan.addresses}
        assert bool(workspace) == bool(self.workspace_bytes)
        assert workspace % 256 == 0
        self.launches.append((plan.operation, device, stream))
        if workspace:
            at(workspace, (self.workspace_bytes // 4,), "float32")[...] = np.nan
        with np.errstate(all="ignore"):
            _Launch(plan, eps, given).run()


class _Launch:
    def __init__(self, plan, eps, given):
        self.plan, self.eps, self.given = plan, eps, given
        self.axis, self.channels = plan.channel_axis, plan.shape[plan.channel_axis]
        self.kind = "float64" if plan.dtype == "float64" else "float32"
        name = ACTIVATIONS[given.get("activation", 0)]
        assert name != "leaky_relu" or given["negative_slope"] == activations.SLOPE
        self.activation = activations.of(name)

    def data(self, name):
        return at(self.given[name], self.plan.shape, self.plan.dtype, self.plan.strides[name])

    def vector(self, name, dtype=None):
        address = self.given.get(name, 0)
        return at(address, (self.channels,), dtype or self.kind) if address else None

    def rows(self, name, count):
        return at(self.given[name], (count, self.channels), "float64")

    def write(self, name, values):
        self.data(name)[...] = values

    def run(self):
        getattr(self, self.plan.operation)()

    def moments(self):
        x = np.asarray(self.data("x"), np.float64)
        batch = reference.moments(x, self.axis)
        rstd = reference.rstd(batch.var, self.eps)
        self.write_rows(batch.mean, batch.m2, batch.var, rstd)
        return batch

    def write_rows(self, mean, m2, var, rstd):
        rows = unbound(self.rows("statistics", len(ROW)))
        values = Statistics(mean, m2, var, rstd, np.zeros(self.channels))
        for row, value in zip(rows, values, strict=True):
            row[...] = value

    def collect_stats(self):
        self.moments()

    def normalized(self, mean, var):
        weight, bias = self.vector("weight"), self.vector("bias")
        options = {"eps": self.eps, "channel_axis": self.axis}
        x = np.asarray(self.data("x"), np.float64)
        z = reference.normalize(x, mean, var, weight, bias, **options)
        self.write("y", self.activation.value(z + self.residual()))
        if self.given.get("of_z"):
            rstd = reference.rstd(np.asarray(var, np.float64), self.eps)
            scale = rstd * (1.0 if weight is None else weight)
            shift = (0.0 if bias is None else bias) - np.asarray(mean, np.float64) * scale
            self.rows("of_z", 2)[...] = scale, shift

    def forward(self):
        batch = self.moments()
        self.normalized(batch.mean, batch.var)
        if (mean := self.vector("running_mean")) is not None:
            var = self.vector("running_var")
            moves = self.given["momentum"], self.given["correction"]
            new = reference.update_running((mean, var), batch, *moves)
            mean[...], var[...] = new

    def normalize(self):
        if not self.given.get("mean"):
            saved = unbound(self.rows("statistics", len(ROW)))
            self.normalized(saved.mean, saved.var)
            return
        kind = "float64" if self.given["wide_statistics"] else self.kind
        mean, var = self.vector("mean", kind), self.vector("var", kind)
        self.normalized(mean, var)
        if self.given.get("statistics"):
            nan = np.full(self.channels, np.nan)
            self.write_rows(mean, nan, var, reference.rstd(var, self.eps))

    def residual(self):
        if not self.given.get("residual"):
            return 0.0
        return np.asarray(self.data("residual"), np.float64)

    def g(self):
        """The gradient by z."""
        x, dy = (np.asarray(self.data(name), np.float64) for name in ("x", "dy"))
        if not self.given.get("of_z"):
            return dy
        rows = reference.per_channel(x, self.axis)
        scale, shift = self.rows("of_z", 2)[:, :, None]
        z = reference.in_place_of(x, rows * scale + shift, self.axis) + self.residual()
        g = dy * self.activation.derivative(z)
        if self.given.get("dresidual"):
            self.write("dresidual", g)
        return g

    def gradients(self, function, *given):
        x, dy = np.asarray(self.data("x"), np.float64), self.g()
        options = {"eps": self.eps, "channel_axis": self.axis}
        gradients = function(dy, x, *given, self.vector("weight"), **options)
        self.write("dx", gradients.dx)
        self.vector("dweight")[...] = gradients.dweight
        self.vector("dbias")[...] = gradients.dbias

    def backward(self):
        self.gradients(reference.backward)

    def backward_fixed(self):
        mean, _, var, _ = self.rows("statistics", 4)
        self.gradients(reference.backward_constant, mean, var)

    def centred(self):
        mean, _, _, rstd = self.rows("statistics", 4)
        x, dy = (reference.per_channel(each, self.axis) for each in (self.data("x"), self.g()))
        return dy, x - mean[:, None], rstd[:, None]

    def backward_reduce(self):
        dy, xmu, _ = self.centred()
        self.rows("sums", 2)[...] = dy.sum(axis=1), (dy * xmu).sum(axis=1)

    def backward_apply(self):
        dy, xmu, rstd = self.centred()
        sum_dy, sum_dy_xmu = self.rows("sums", 2)[:, :, None]
        n = self.given["count"]
        weight = reference.column(self.vector("weight"), self.channels, 1.0)
        rows = weight * rstd * (dy - sum_dy / n - xmu * rstd**2 * sum_dy_xmu / n)
        self.write("dx", reference.in_place_of(self.data("x"), rows, self.axis))
