"""Layer, RMS, group and instance normalization as the tests call them, and their definition.

A subject is one norm: its two functions, its definition in long double, and how far results may be
off. Tests of the CPU, of emulated CUDA and of a GPU draw inputs here, run both passes, compare.
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import activations, cell_reference, row_reference
from .activations import SLOPE
from .compare import assert_same_bits

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
LAYOUTS = ("planar", "interleaved", "channels", "examples", "reversed")
UNIT = {np.float32: 2**-23, np.float64: 2**-52, np.float16: 2**-10, ml_dtypes.bfloat16: 2**-7}

DATA = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
RESIDUAL = pytest.mark.parametrize("adds", [False, True], ids=["alone", "residual"])
CENTERED = pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])


def param(dtype):
    return np.float64 if dtype is np.float64 else np.float32


def is_narrow(dtype):
    return dtype not in (np.float32, np.float64)


def laid_out(array, layout):
    """The same values in memory of another order, with gaps, or turned around."""
    if layout == "interleaved":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    if layout == "reversed":  # neither walk: copied
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    axis = {"channels": 1, "examples": 0}.get(layout)
    if axis is None:
        return array
    shape = list(array.shape)
    shape[axis] = 2 * shape[axis] + 3 if axis == 0 else shape[axis] + 3
    larger = np.full(shape, np.nan, array.dtype)
    part = larger[1 : 1 + 2 * array.shape[0] : 2] if axis == 0 else larger[:, 2:-1]
    part[...] = array
    return part


# --- one call of each pass ------------------------------------------------------------------------


class Inputs(NamedTuple):
    """The arguments of a call; `name` is of an activation."""

    norm: Any
    x: Any
    dy: Any
    weight: Any = None
    bias: Any = None
    residual: Any = None
    name: str | None = None

    @property
    def options(self):
        if self.name is None and self.residual is None:
            return {}
        return {"activation": self.name, "negative_slope": SLOPE, "residual": self.residual}

    def mapped(self, make):
        """The same with arrays by `make`."""
        return self._replace(**{
            key: make(getattr(self, key))
            for key in ("x", "dy", "weight", "bias", "residual") if getattr(self, key) is not None
        })  # fmt: skip


class Results(NamedTuple):
    """Of both passes; dbias and dresidual where the norm has them."""

    y: Any
    saved: Any
    dx: Any
    dweight: Any
    dbias: Any = None
    dresidual: Any = None

    @property
    def arrays(self):
        """All but what is saved, by name."""
        named = self._asdict()
        return {k: v for k, v in named.items() if k != "saved" and v is not None}

    @property
    def bits(self):
        return self.arrays | {"rows": self.saved.rows}

    def mapped(self, make):
        return self._replace(**{key: make(each) for key, each in self.arrays.items()})


def drawn(rng, norm, shape, dtype=np.float32, *, name=None, adds=False, layout="planar"):
    """Inputs, of which the gradient is 0 where z lies next to a kink."""
    of_parameters = norm.parameter_shape(shape)
    x = (rng.standard_normal(shape) * 2 + 3).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    weight = (1 + 0.5 * rng.standard_normal(of_parameters)).astype(param(dtype))
    bias = rng.standard_normal(of_parameters).astype(param(dtype))
    residual = rng.standard_normal(shape).astype(dtype) if adds else None
    inputs = Inputs(norm, x, dy, weight, bias, residual, name)
    if name is not None:
        inputs.dy[...] = activations.without_kinks(dy, np.float64(norm.argument(inputs)), name)
    place = {key: laid_out(each, layout) for key, each in inputs._asdict().items()
             if key in ("x", "dy", "residual") and each is not None}  # fmt: skip
    return inputs._replace(**place)


def forward(inputs, **more):
    return inputs.norm.forward(inputs.x, inputs.weight, inputs.bias, **inputs.options, **more)


def backward(inputs, saved, **more):
    return inputs.norm.backward(
        inputs.dy, inputs.x, saved, inputs.weight, inputs.residual, **more
    )  # fmt: skip


def both_passes(inputs, **more):
    y, saved = forward(inputs, **more)
    return Results(y, saved, *backward(inputs, saved))


def assert_all_same_bits(actual, expected, what=""):
    """Of results, or of arrays by name."""
    actual, expected = (getattr(each, "arrays", each) for each in (actual, expected))
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_bits(np.asarray(actual[name]), np.asarray(value), f"{name} {what}")


class Place:
    """Where arrays of a test are: in NumPy's memory. tests/cuda has others."""

    on_gpu = False

    def put(self, values):
        return values

    def get(self, array):
        return np.asarray(array)

    def both(self, inputs, **more):
        """`both_passes` there; results are NumPy's arrays, but for what is saved."""
        return both_passes(inputs.mapped(self.put), **more).mapped(self.get)


HERE = Place()

# --- norms ----------------------------------------------------------------------------------------


class Norm:
    """What rows and cells have in common."""

    has_bias = True

    def forward(self, x, weight=None, bias=None, **options):
        run, _ = self.functions(x.shape)
        affine = (weight, bias) if self.has_bias else (weight,)
        return run(x, *self.arguments(x.shape), *affine, **{"eps": 1e-5, **options})

    def backward(self, dy, x, saved, weight=None, residual=None, **options):
        """dx, dweight, dbias and dresidual; None for those that there are not."""
        _, run = self.functions(x.shape)
        assert saved.residual == (residual is not None)
        assert saved.reads_residual == (saved.residual and saved.activation is not None)
        if saved.reads_residual:
            options["residual"] = residual
        dx, dweight, *others = run(dy, x, saved, weight, **options)
        assert len(others) == self.has_bias + (residual is not None)
        dbias = others.pop(0) if self.has_bias else None
        return dx, dweight, dbias, *others

    def argument(self, inputs, eps=1e-5):
        """z, in long double."""
        bias = inputs.bias if self.has_bias else None
        z = self.definition(inputs.x, inputs.weight, bias, eps)
        return z if inputs.residual is None else z + np.asarray(inputs.residual, np.longdouble)

    def expected(self, inputs, eps=1e-5):
        """By the definition: results, where z and g stand for what is saved."""
        z, act = self.argument(inputs, eps), activations.of(inputs.name)
        z = z if inputs.name is None else np.float64(z)
        g = np.asarray(inputs.dy, z.dtype) * act.derivative(z)
        dx, dweight, dbias = self.gradients(g, inputs.x, inputs.weight, eps)
        return Results(act.value(z), (z, g), dx, dweight, dbias if self.has_bias else None, g)


def _named(kind):
    return (getattr(bnext, f"{kind}_norm_{way}") for way in ("forward", "backward"))


@dataclasses.dataclass(frozen=True)
class Rows(Norm):
    """Layer normalization over the last `dims` axes, or, where it is not centered, RMS."""

    dims: int = 1
    centered: bool = True

    # Units of the largest value of a row, or of its gradient. xhat has the roundings of x - center,
    # of rstd, of the shift and of the fused multiply-add, and y one or two more; dx has the
    # roundings of xhat twice. Of 16 bits only the last rounding is seen.
    Y: ClassVar = {np.float32: 3.0, np.float64: 4.0, np.float16: 0.51, ml_dtypes.bfloat16: 0.51}
    DX: ClassVar = {np.float32: 5.0, np.float64: 8.0, np.float16: 0.6, ml_dtypes.bfloat16: 0.6}
    SUMS: ClassVar = {np.float32: 2.0, np.float64: 32.0, np.float16: 2.0, ml_dtypes.bfloat16: 2.0}
    SUMS_THERE: ClassVar = SUMS | dict.fromkeys((np.float32, np.float16, ml_dtypes.bfloat16), 6.0)

    @property
    def has_bias(self):
        return self.centered

    def functions(self, shape):
        return _named("layer" if self.centered else "rms")

    def arguments(self, shape):
        return (self.parameter_shape(shape),)

    def parameter_shape(self, shape):
        return tuple(shape[len(shape) - self.dims :])

    def of_rows(self, x, eps=1e-5):
        """Statistics and xhat."""
        return row_reference.forward(x, self.dims, eps=eps, centered=self.centered)

    def definition(self, x, weight, bias, eps):
        y = row_reference.forward(x, self.dims, weight, bias, eps=eps, centered=self.centered).y
        return y.reshape(x.shape)

    def gradients(self, g, x, weight, eps=1e-5):
        dx, *sums = row_reference.backward(
            g, x, self.dims, weight, eps=eps, centered=self.centered
        )  # fmt: skip
        return dx.reshape(x.shape), *(each.reshape(self.parameter_shape(x.shape)) for each in sums)

    def assert_are_right(self, results, inputs, place=HERE):
        """Results without an activation. On a GPU, sums of up to 8 values are in the arithmetic's
        type."""
        dtype, dims, on_gpu = inputs.x.dtype.type, self.dims, place.on_gpu
        expected, of, unit = self.expected(inputs), self.of_rows(inputs.x), UNIT[dtype]
        y, saved, dx, dweight, dbias, _ = results
        assert y.dtype == dx.dtype == dtype
        assert y.shape == dx.shape == inputs.x.shape
        assert dweight.dtype == param(dtype)
        assert dweight.shape == inputs.weight.shape
        largest = np.abs(of.xhat).max() * np.abs(inputs.weight).max() + np.abs(inputs.bias).max()
        check_close(y, expected.y, (self.Y[dtype] + on_gpu) * unit, largest)
        close = 4 * UNIT[param(dtype)] if on_gpu else None
        assert saved.rstd.shape == saved.mean.shape == inputs.x.shape[: inputs.x.ndim - dims]
        for name, rtol in (("rstd", 1e-11), ("mean", 1e-12))[: 1 + self.centered]:
            known = getattr(of, name)[:, 0].astype(float)
            found = place.get(getattr(saved, name)).ravel()
            np.testing.assert_allclose(found, known, rtol=close or rtol)
        size = np.abs(inputs.dy.astype(float)).max()
        scale = of.rstd * size * np.abs(inputs.weight).max() * 2
        scale = scale * (1 + np.abs(of.xhat).max() ** 2 / 4)
        rows = (len(of.rstd), -1)
        exact = expected.dx.reshape(rows) if expected.dx.size else expected.dx
        check_close(dx, exact, (self.DX[dtype] + 2 * on_gpu) * unit, scale)
        size = size * max(1, np.abs(of.xhat).max()) * np.sqrt(len(of.rstd))
        bound = (self.SUMS_THERE if on_gpu else self.SUMS)[dtype] * UNIT[param(dtype)]
        check_close(dweight, expected.dweight, bound, size)
        if self.centered:
            check_close(dbias, expected.dbias, bound, size)

    def assert_are_activated(self, results, inputs, sums=True):
        """Results with an activation or a residual, within units of the largest terms of a row."""
        dtype, expected = inputs.x.dtype.type, self.expected(inputs)
        (z, _), of = expected.saved, self.of_rows(inputs.x)
        assert results.y.dtype == results.dx.dtype == dtype
        rows = (len(of.rstd), -1)

        def close(what, units, scale):
            value = np.float64(getattr(expected, what)).reshape(rows)
            error = np.abs(np.float64(getattr(results, what)).reshape(rows) - value)
            allowed = units * UNIT[param(dtype)] * scale
            if is_narrow(dtype):
                allowed = allowed + 0.5 * UNIT[dtype] * (np.abs(value) + allowed)
                allowed = allowed + 1e-7  # of subnormal float16
            assert (error <= allowed).all(), (what, float((error / allowed).max()))

        xhat, dy = np.abs(np.float64(of.xhat)).max(axis=1, keepdims=True), np.float64(inputs.dy)
        weight, dy = np.abs(inputs.weight).max(), np.abs(dy).max()
        largest = xhat * weight + np.abs(inputs.bias).max() + float(np.abs(z).max())
        close("y", 8, largest)
        assert (results.dresidual is None) == (inputs.residual is None)
        if results.dresidual is not None:
            close("dresidual", 0 if inputs.name is None else 16, dy * (1 + largest))
        scale = np.float64(of.rstd) * dy * weight * 2
        close("dx", 16, scale * (1 + xhat**2) * (1 + largest))
        size = dy * (1 + xhat.max()) * len(of.rstd) * (1 + largest.max())
        for what in ("dweight", "dbias")[: (1 + self.centered) * sums]:
            found = getattr(results, what)
            assert found.dtype == param(dtype)
            error = np.abs(found - getattr(expected, what)).max()
            assert error <= 8 * UNIT[param(dtype)] * size, what


def check_close(got, expected, unit, scale=None):
    """Within units of `scale`, or of the largest value of each row."""
    got, expected = np.asarray(got, np.longdouble), np.asarray(expected, np.longdouble)
    got = got.reshape(expected.shape)
    scale = np.abs(expected).max(axis=-1, keepdims=True) if scale is None else scale
    if not scale.size:
        return
    error = np.abs(got - expected) / np.maximum(scale, np.finfo(np.float32).tiny)
    assert error.max(initial=0) <= unit, float(error.max() / unit)


@dataclasses.dataclass(frozen=True)
class Cells(Norm):
    """Group normalization, and instance normalization where there are as many groups as channels
    of more than one value; channels are axis 1."""

    groups: int = 1

    # Units of the largest value of a slab and its terms. y has the roundings of x - center, of
    # scale, of shift and of the fused multiply-add, and dx seven. Of 16 bits only the last rounding
    # is seen.
    Y: ClassVar = {np.float32: 3.0, np.float64: 12.0, np.float16: 0.6, ml_dtypes.bfloat16: 0.6}
    DX: ClassVar = {np.float32: 5.0, np.float64: 24.0, np.float16: 0.7, ml_dtypes.bfloat16: 0.7}
    SUMS: ClassVar = {np.float32: 2.0, np.float64: 64.0, np.float16: 2.0, ml_dtypes.bfloat16: 2.0}

    def is_instance(self, shape):
        return self.groups == shape[1] and math.prod(shape[2:]) > 1

    def functions(self, shape):
        return _named("instance" if self.is_instance(shape) else "group")

    def arguments(self, shape):
        return () if self.is_instance(shape) else (self.groups,)

    def parameter_shape(self, shape):
        return (shape[1],)

    def definition(self, x, weight, bias, eps):
        return cell_reference.group_norm(x, self.groups, weight, bias, eps)[0]

    def gradients(self, g, x, weight, eps=1e-5):
        return cell_reference.group_norm_backward(g, x, self.groups, weight, eps)

    def assert_close(self, actual, expected, units, beside=0.0):
        """By the largest value of each slab; `beside`: of terms that the values are sums of."""
        unit = UNIT[actual.dtype.type]
        assert actual.shape == expected.shape
        error = np.abs(np.asarray(actual, np.longdouble) - expected)
        slabs = (expected.shape[0], self.groups, -1)
        largest = np.abs(expected).reshape(slabs).max(axis=2, keepdims=True) + beside
        assert np.max(error.reshape(slabs) / np.maximum(largest, 1e-300)) <= units * unit

    def assert_are_right(self, results, inputs, place=HERE):
        """Results without an activation."""
        _, x, dy, weight, bias, *_ = inputs
        y, saved, dx, dweight, dbias, _ = results
        dtype, shape, on_gpu = x.dtype.type, x.shape, place.on_gpu
        expected = self.expected(inputs)
        _, mean, var = cell_reference.group_norm(x, self.groups, weight, bias)
        assert y.dtype == dx.dtype == x.dtype
        assert dweight.dtype == dbias.dtype == param(dtype)
        self.assert_close(y, expected.y, self.Y[dtype] + on_gpu, beside=1)
        terms = np.abs(dy if weight is None else dy * weight.reshape(-1, *(1,) * (x.ndim - 2)))
        terms = terms.reshape(shape[0], self.groups, -1).max(axis=2) / np.sqrt(var + 1e-5)
        self.assert_close(dx, expected.dx, self.DX[dtype] + on_gpu, beside=terms[..., None])
        count = x.size / shape[1]
        near = UNIT[param(dtype)] * self.SUMS[dtype] * np.sqrt(count)
        near = max(near, 2**-18) if is_narrow(dtype) else near
        for got, wanted in ((dweight, expected.dweight), (dbias, expected.dbias)):
            assert np.all(np.abs(got - wanted) <= near * (np.sqrt(count) + np.abs(wanted)))
        assert saved.mean.shape == saved.var.shape == (shape[0], self.groups)
        assert saved.count == x[0].size // self.groups
        near = 1e-12 if dtype is np.float64 or not (on_gpu or is_narrow(dtype)) else 1e-5
        assert np.all(np.abs(place.get(saved.mean) - mean) <= near * np.sqrt(var + 1e-3))
        assert np.all(np.abs(place.get(saved.var) - var) <= near * (var + 1e-3))

    def assert_are_activated(self, results, inputs):
        """Slopes are up to 1.2, and the argument has its own rounding."""
        dtype, shape, expected = inputs.x.dtype.type, inputs.x.shape, self.expected(inputs)
        assert results.y.dtype == results.dx.dtype == dtype
        adds, units = inputs.residual is not None, 40 if dtype is np.float64 else 14
        self.assert_close(results.y, expected.y, units, beside=1 + adds)
        self.assert_close(results.dx, expected.dx, 3 * units, beside=1)
        assert (results.dresidual is None) == (not adds)
        if adds:
            assert results.dresidual.dtype == dtype
            exact = inputs.name is None
            self.assert_close(results.dresidual, expected.dresidual, units * (not exact), beside=1)
        allowed = 60 * UNIT[param(dtype)] * (2**4 if is_narrow(dtype) else 1)
        allowed += 2e-5 if is_narrow(dtype) else 0
        for name in ("dweight", "dbias"):
            error = np.abs(getattr(results, name) - getattr(expected, name)).max()
            assert error <= allowed * np.sqrt(np.prod(shape) / shape[1]), name


# A norm of each kind, and a shape.
NORMS = {
    "layer": (Rows(), (6, 5, 40)),
    "rms": (Rows(1, False), (6, 5, 40)),
    "group": (Cells(4), (3, 8, 5, 7)),
    "instance": (Cells(8), (3, 8, 5, 7)),
}
EVERY_NORM = pytest.mark.parametrize("kind", NORMS)
