"""A program on eight devices of the CPU: `jax.jit` of arrays in shards, without shard_map.

Each check compares with the same program on whole arrays, and looks for exchanges of data in what
XLA made of it: moments and sums are added up, x is not put together.
"""

import functools

import numpy as np

from .eight_devices import (
    DEVICES,
    GRID,
    KINDS,
    LINE,
    close,
    cost,
    drawn,
    jax,
    putting,
    run_checks,
)

from jax.sharding import NamedSharding  # isort: skip - of the same devices
from jax.sharding import PartitionSpec as P  # isort: skip

import bnext.jax  # isort: skip
import bnext.jax.partition  # isort: skip

DIVISIONS = (  # of (examples, positions, channels)
    (LINE, P("data")), (GRID, P("data")), (GRID, P(("data", "model"))), (GRID, P("data", "model")),
    (GRID, P("model", "data")), (GRID, P("data", None, "model")), (LINE, P(None, None, "data")),
)  # fmt: skip
rng = np.random.default_rng()
X, DY, RESIDUAL, WEIGHT, BIAS = drawn(rng, 32, 4, 16)
MEAN, VAR = rng.uniform(1, 2, (2, 16)).astype(np.float32)


def exchanges(function, *arrays):
    """What XLA's program exchanges: names of operations."""
    text = function.lower(*arrays).compile().as_text()
    names = "all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"
    return {name for name in names if f" {name}(" in text or f" {name}-start(" in text}


def loss(x, weight, bias, residual, dy, activation=None, **options):
    results = bnext.jax.batch_norm(
        x, weight, bias, residual=residual, activation=activation, **options
    )
    return cost(*results, dy)


def compare(function, arrays, put, allowed=("all-reduce",), tolerance=3e-6):
    """The function of whole arrays is the function of shards; `put` divides arrays of data, or has
    one for each array."""
    function = jax.jit(function)
    if callable(put):
        put = [put if each.ndim > 1 else np.asarray for each in arrays]
    shards = [divide(each) for divide, each in zip(put, arrays, strict=True)]
    results = function(*shards)
    close(results, function(*arrays), tolerance)
    found = exchanges(function, *shards)
    assert found <= set(allowed), found
    return results


def values_and_gradients():
    """Also of weights, which are the same everywhere: the gradient is the whole batch's."""
    arrays = X, WEIGHT, BIAS, RESIDUAL, DY
    for kind in KINDS:
        for number, (mesh, spec) in enumerate(DIVISIONS):
            mesh = kind(mesh)
            activation = (None, "relu", "gelu", "leaky_relu")[number % 4]
            function = jax.value_and_grad(
                functools.partial(loss, activation=activation), (0, 1, 2, 3)
            )
            channels_alone = spec == P(None, None, "data")
            allowed = () if channels_alone else ("all-reduce",)
            if channels_alone:  # the loss is one number, its gradient needs no exchange
                function = jax.grad(functools.partial(loss, activation=activation), (0, 1, 2, 3))
            with jax.set_mesh(mesh):
                results = compare(function, arrays, putting(mesh, spec), allowed)
            dx = results[0] if channels_alone else results[1][0]
            assert dx.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
            assert dx.addressable_shards[0].data.size == X.size // np.prod(
                [mesh.shape[name] for name in jax.tree.leaves(tuple(spec))]
            )


def channels_first():
    arrays = X.swapaxes(1, 2), WEIGHT, BIAS, RESIDUAL.swapaxes(1, 2), DY.swapaxes(1, 2)
    function = functools.partial(loss, channel_axis=1, activation="relu")
    for spec in (P("data"), P("data", "model"), P("data", None, "model")):
        compare(jax.grad(function, range(4)), arrays, putting(GRID, spec))


def the_same_bits_as_shard_map():
    """Moments are merged in the order of ranks, in float64."""
    for spec in (P("data"), P("data", "model")):
        names = tuple(jax.tree.leaves(tuple(spec)))
        by_hand = jax.shard_map(
            lambda x, *affine, names=names: bnext.jax.batch_norm(x, *affine, axis_name=names),
            mesh=GRID, in_specs=(spec, P(), P()), out_specs=(spec, P()),
        )  # fmt: skip
        x = putting(GRID, spec)(X)
        actual = jax.jit(bnext.jax.batch_norm)(x, WEIGHT, BIAS)
        jax.tree.map(np.testing.assert_array_equal, actual, by_hand(x, WEIGHT, BIAS))
        # Outside of every program as well.
        y, _ = bnext.jax.batch_norm(x, WEIGHT, BIAS)
        np.testing.assert_array_equal(y, actual[0])
        assert y.sharding.is_equivalent_to(x.sharding, 3)


def second_derivatives():
    for kind in KINDS:
        mesh = kind(LINE)
        with jax.set_mesh(mesh):
            for activation in (None, "relu", "gelu"):

                def product(x, weight, bias, residual, dy, activation=activation):
                    def of_x(x):
                        return loss(x, weight, bias, residual, dy, activation)

                    return jax.jvp(jax.grad(of_x), (x,), (dy,))[1]

                compare(product, (X, WEIGHT, BIAS, RESIDUAL, DY), putting(mesh, P("data")),
                        tolerance=2e-5)  # fmt: skip


def mapped():
    """Under vmap: of weights, of x, and along an axis that is itself in shards."""
    weights, biases = (np.stack([each, 2 * each, 3 * each]) for each in (WEIGHT, BIAS))
    several = np.stack([X, X + DY, X - DY])
    for kind in KINDS:
        mesh = kind(LINE)
        with jax.set_mesh(mesh):
            for activation in (None, "relu"):
                gradient = jax.grad(functools.partial(loss, activation=activation), range(4))
                data = P("data")
                for axes, arrays, specs in (
                    ((None, 0, 0, None, None), (X, weights, biases, RESIDUAL, DY),
                     (data, P(), P(), data, data)),
                    ((0, None, 0, None, 0), (several, WEIGHT, biases, RESIDUAL, several),
                     (P(None, "data"), P(), P(), data, P(None, "data"))),
                ):  # fmt: skip
                    function = jax.jit(jax.vmap(gradient, axes))
                    shards = [
                        putting(mesh, spec)(array)
                        for spec, array in zip(specs, arrays, strict=True)
                    ]
                    close(function(*shards), function(*arrays))
                    assert exchanges(function, *shards) == {"all-reduce"}
                models = np.stack([X + number for number in range(8)])
                function = jax.jit(jax.vmap(gradient, (0, None, None, None, None)))
                rest = WEIGHT, BIAS, RESIDUAL, DY
                shards = putting(mesh, P("data"))(models)
                close(function(shards, *rest), function(models, *rest))
                assert not exchanges(function, shards, *rest)


def mapped_twice():
    weights = rng.uniform(0.5, 1.5, (2, 16)).astype(np.float32)
    several = np.stack([X, X + DY, X - DY])
    function = jax.vmap(
        jax.vmap(lambda x, weight: bnext.jax.batch_norm(x, weight)[0], (0, None)), (None, 0)
    )
    function = jax.jit(function)
    shards = putting(LINE, P(None, "data"))(several)
    close(function(shards, weights), function(several, weights))
    assert exchanges(function, shards, weights) == {"all-reduce"}


def the_batch_along_an_axis_of_vmap():
    """As layers of Equinox have it: they see one example."""
    for kind in KINDS:
        mesh = kind(LINE)
        with jax.set_mesh(mesh):
            for activation in (None, "relu"):

                def of_examples(x, weight, bias, residual, dy, activation=activation):
                    y, moments = jax.vmap(
                        lambda x, residual: bnext.jax.batch_norm(
                            x, weight, bias, residual=residual, activation=activation,
                            axis_name="batch",
                        ),
                        axis_name="batch", out_axes=(0, None),
                    )(x, residual)  # fmt: skip
                    return cost(y, moments, dy)

                compare(jax.grad(of_examples, range(4)), (X, WEIGHT, BIAS, RESIDUAL, DY),
                        putting(mesh, P("data")))  # fmt: skip


def inference():
    def function(x, mean, var, weight, bias, residual, dy, activation):
        y = bnext.jax.normalize(
            x, mean, var, weight, bias, residual=residual, activation=activation
        )
        return (y * y * dy).sum()

    arrays = X, MEAN, VAR, WEIGHT, BIAS, RESIDUAL, DY
    for kind in KINDS:
        mesh = kind(GRID)
        with jax.set_mesh(mesh):
            for activation, spec in ((None, P("data")), ("relu", P("data", "model"))):
                gradient = jax.grad(functools.partial(function, activation=activation), range(6))
                compare(gradient, arrays, putting(mesh, spec))
            compare(
                lambda x, *rest: bnext.jax.normalize(x, *rest), arrays[:5],
                putting(mesh, P("data")), (),
            )  # fmt: skip


def statistics_alone():
    results = compare(bnext.jax.moments, (X,), putting(LINE, P("data")))
    close(results.mean, X.astype(np.float64).mean((0, 1)))


def loops():
    """In scan, and computed again by checkpoint."""

    def function(x, weight, bias):
        def one(x, _):
            return bnext.jax.batch_norm(x, weight, bias, residual=x, activation="relu")[0], None

        return (jax.lax.scan(jax.checkpoint(one), x, None, length=3)[0] ** 2).sum()

    compare(jax.grad(function, (0, 1, 2)), (X, WEIGHT, BIAS), putting(LINE, P("data")),
            tolerance=3e-5)  # fmt: skip


def shards_that_do_not_come_out_even():
    """XLA would fill shards up with values that are none of the batch."""
    x = X[:30]

    def function(x):
        x = jax.lax.with_sharding_constraint(x * 1, NamedSharding(LINE, P("data")))
        return bnext.jax.batch_norm(x)

    close(jax.jit(function)(x), bnext.jax.batch_norm(x))


def by_gspmd():
    """XLA's older way of dividing programs."""
    jax.config.update("jax_use_shardy_partitioner", False)
    function = functools.partial(loss, activation="relu")
    for mesh, spec in ((LINE, P("data")), (GRID, P("data", None, "model"))):
        compare(jax.grad(function, range(4)), (X, WEIGHT, BIAS, RESIDUAL, DY), putting(mesh, spec))
    jax.config.update("jax_use_shardy_partitioner", True)


def one_device_of_eight():
    """A program on one device of several computes with the kernels of whole batches."""
    arrays = [jax.device_put(each, DEVICES[3]) for each in (X, WEIGHT, BIAS, RESIDUAL, DY)]
    function = jax.jit(jax.grad(functools.partial(loss, activation="relu"), range(4)))
    assert "bnext_forward" in function.lower(*arrays).compile().as_text()
    close(function(*arrays), function(X, WEIGHT, BIAS, RESIDUAL, DY))


if __name__ == "__main__":
    run_checks(__name__)
