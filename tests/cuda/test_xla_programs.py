"""Programs of JAX over the kernels for a GPU: all of `bnext.jax.gpu`, and XLA's own calls.

The handlers for CUDA, over the emulated kernels, are told to XLA as handlers for its CPU, whose
memory is the emulation's. So programs run as they are made for CUDA, up to the compiler.
"""

import functools
import itertools
import types

import numpy as np
import pytest

import bnext

from ..activations import SLOPE
from ..jax.support import (
    ACTIVATIONS,
    DTYPES,
    Inputs,
    check_grads,
    close,
    jax,
    jnp,
    plain,
)
from .frames import MODULE
from .test_plans import ARRAYS, DEVICES, LARGE, dense_strides

from bnext.jax import foreign, gpu  # isort: skip

TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 2e-2, "bfloat16": 2e-2}


@functools.cache
def tell_handlers():
    for name, handler in MODULE.targets_on_a_cpu().items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")


def on_a_gpu(name, names, results, constants):
    """Make a call as programs for CUDA have it (`foreign._program`)."""
    attributes = {name: value for name, value, _ in constants}

    def program(*arrays):
        given = dict(zip(names, arrays, strict=True))
        return gpu.call(foreign._invoke, name, given, dict(results), attributes)

    return jax.jit(program)


def guard(x, refused=""):
    assert not refused
    return x


@pytest.fixture
def x64():
    """JAX with float64, for the test alone."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def programs_for_a_gpu():
    """JAX forgets programs before and after: the same ones are made for the CPU by other tests."""
    tell_handlers()
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "_program", functools.lru_cache(on_a_gpu))
        patch.setattr(gpu, "_guard", guard)
        yield
    jax.clear_caches()


def assert_agrees(inputs, activation, transform=jax.jit):
    y, saved, gradients = inputs.by_numpy(activation)
    y_there, moments, gradients_there = inputs.by_jax(activation, transform)
    gradients_there = [each for each in gradients_there if each is not None]
    tolerance = TOLERANCE[inputs.x.dtype.name]
    assert y_there.dtype == inputs.x.dtype
    close((y_there, *gradients_there), (y, *gradients), tolerance)
    close((moments.mean, moments.m2), (saved.mean, saved.m2), tolerance)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_values_and_gradients(rng, activation, residual):
    assert_agrees(Inputs(rng, (5, 4, 3, 19), residual=residual), activation)


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: np.dtype(dtype).name)
def test_16_bit(rng, dtype, activation):
    assert_agrees(Inputs(rng, (5, 4, 3, 19), dtype, residual=True), activation)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", [None, "leaky_relu", "silu"])
def test_float64(rng, activation):
    assert_agrees(Inputs(rng, (5, 4, 3, 19), np.float64, residual=True), activation)


@pytest.mark.parametrize(("shape", "axis"), [((37, 8), 1), ((3, 5, 7, 9), 1), ((6, 5, 4), 0)])
def test_shapes_outside_of_jit(rng, shape, axis):
    assert_agrees(Inputs(rng, shape, channel_axis=axis), "relu", lambda function: function)


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.25])
def test_slopes_of_leaky_relu(rng, slope):
    """With a slope below 0, y does not say on which side of 0 z was."""
    inputs = Inputs(rng, residual=True)
    options = {"activation": "leaky_relu", "negative_slope": slope}
    y, saved = bnext.batch_norm_forward(
        inputs.x, *inputs.affine, channel_axis=-1, residual=inputs.residual, **options
    )
    expected = bnext.batch_norm_backward(inputs.dy, inputs.x, saved, inputs.weight)

    def call(x, weight, bias, residual):
        return bnext.jax.batch_norm(x, weight, bias, residual=residual, **options)[0]

    y_there, pull_back = jax.vjp(jax.jit(call), inputs.x, *inputs.affine, inputs.residual)
    close(y_there, y, 2e-5)
    close(pull_back(inputs.dy), expected, 2e-5)


def test_nan_and_infinity_under_an_activation(rng):
    """Derivatives are equal to what the kernels compute by flags."""
    inputs = Inputs(rng, (8, 3, 4), residual=True)
    inputs.residual[0, 0] = np.nan, np.inf, -np.inf, 0
    inputs.bias[:] = 0
    for activation in ("relu", "relu6", "leaky_relu"):
        *_, expected = inputs.by_numpy(activation)[2]
        *_, actual = inputs.by_jax(activation, jax.jit)[2]
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_given_statistics(rng, activation, residual):
    inputs = Inputs(rng, (6, 5, 8), residual=residual)
    arrays = inputs.x, inputs.mean, inputs.var, *inputs.affine

    def call(x, mean, var, weight, bias, residual):
        return bnext.jax.normalize(x, mean, var, weight, bias, residual=residual, **options)

    options = inputs.options(activation)
    del options["residual"]
    y, pull_back = jax.vjp(jax.jit(call), *arrays, inputs.residual)
    close(y, bnext.normalize(*arrays, **inputs.options(activation)), 2e-5)

    def reference(x, mean, var, weight, bias, residual):
        return plain(x, weight, bias, residual, activation=activation, statistics=(mean, var))[0]

    _, pull_back_reference = jax.vjp(reference, *arrays, inputs.residual)
    close(pull_back(inputs.dy), pull_back_reference(inputs.dy), 5e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", [None, "silu"])
def test_second_derivatives(rng, activation):
    inputs = Inputs(rng, (5, 4, 3), np.float64, residual=True)

    def call(x, weight, bias, residual):
        return bnext.jax.batch_norm(x, weight, bias, residual=residual, activation=activation)[0]

    arrays = inputs.x, *inputs.affine, inputs.residual
    check_grads(call, arrays, order=2, modes=["rev"], rtol=1e-3)


def test_second_derivatives_by_flags(rng):
    inputs = Inputs(rng, (6, 5, 7), residual=True)

    def product(function):
        def loss(x, residual):
            return (function(x, *inputs.affine, residual=residual, activation="relu")[0] ** 3).sum()

        x = jnp.asarray(inputs.x), jnp.asarray(inputs.residual)
        return jax.jit(lambda *v: jax.jvp(jax.grad(loss, (0, 1)), x, v)[1])(inputs.dy, inputs.dy)

    close(product(bnext.jax.batch_norm), product(plain), 1e-3)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_vmap_of_models(rng, residual):
    """Mapped weights, and x that all share; twice."""
    inputs = Inputs(rng, (6, 5, 7), residual=residual)
    weights = rng.uniform(0.5, 1.5, (2, 3, 7)).astype(np.float32)

    def loss(weight, x):
        y, moments = bnext.jax.batch_norm(
            x, weight, inputs.bias, residual=inputs.residual, activation="leaky_relu",
            negative_slope=SLOPE,
        )  # fmt: skip
        return (y**2).sum() + moments.mean.sum(), y

    both = jax.value_and_grad(loss, (0, 1), has_aux=True)
    mapped = jax.jit(jax.vmap(jax.vmap(both, (0, None)), (0, None)))(weights, inputs.x)
    for place in np.ndindex(2, 3):
        one = jax.jit(both)(weights[place], inputs.x)
        here = [each[place] for each in jax.tree.leaves(mapped)]
        close(here, jax.tree.leaves(one), 1e-5)


def test_scan_and_checkpoint(rng):
    inputs = Inputs(rng, (6, 5, 7), residual=True)

    @jax.checkpoint
    def step(x, _):
        y, _ = bnext.jax.batch_norm(x, *inputs.affine, residual=inputs.residual, activation="relu")
        return y, None

    def steps(x):
        return (jax.lax.scan(step, x, None, length=3)[0] ** 2).sum()

    def step_by_step(x):
        for _ in range(3):
            x = plain(x, *inputs.affine, inputs.residual, activation="relu")[0]
        return (x**2).sum()

    close(jax.jit(jax.grad(steps))(inputs.x), jax.grad(step_by_step)(inputs.x), 1e-4)


def test_several_streams_of_a_program(rng):
    """XLA's threads call handlers at the same time."""
    many = [Inputs(rng, (9, 5, 8)) for _ in range(6)]

    @jax.jit
    def all_of_them(arrays):
        return [bnext.jax.batch_norm(x, w, b, activation="silu")[0] for x, w, b in arrays]

    found = all_of_them([(each.x, *each.affine) for each in many])
    for y, each in zip(found, many, strict=True):
        close(y, each.by_numpy("silu")[0], 2e-5)


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_workspace_suffices(device, layout, activated):
    """On every GPU for two kernels, and on those that exist for the plan that is the best."""
    limits = MODULE.Limits(**({"cooperative": True} | DEVICES[device]))
    for operation, (dtype, item) in itertools.product(
        ("forward", "backward", "backward_fixed"), {"float32": 4, "bfloat16": 2}.items()
    ):
        for shape in (*LARGE, (64, 256, 56, 56), (8, 512, 28, 28), (64, 2048, 7, 7)):
            axis = 1
            if layout == "interleaved":
                shape, axis = (shape[0], *shape[2:], shape[1]), len(shape) - 1
            strides = [dense_strides(shape, "planar")] * ARRAYS[operation]
            x = types.SimpleNamespace(shape=shape, dtype=np.dtype(f"V{item}"))
            ((room,), _) = gpu.workspace(x, axis)
            room -= -(-16 * shape[axis] // 256) * 256  # what follows from the parameters
            for path in ("two_kernels", None):
                if path is None and "tiny" in device:
                    continue
                plan = MODULE.plan(
                    operation, dtype, shape, strides, [0] * len(strides), axis, limits, path,
                    activated=activated,
                )  # fmt: skip
                assert plan.workspace_bytes <= room, (operation, dtype, shape, path)
