"""A program on eight devices of the CPU: `jax.jit` of arrays in shards, of masks and other norms.

As sharded_jit.py: the same program on whole arrays, and no array of data is put together.
"""

import functools

import numpy as np

from .eight_devices import GRID, KINDS, LINE, cost, drawn_mask, jax, putting, run_checks
from .sharded_jit import BIAS, DY, MEAN, RESIDUAL, VAR, WEIGHT, X, exchanges
from .sharded_jit import compare as compare_by

from jax.sharding import NamedSharding  # isort: skip - of the same devices
from jax.sharding import PartitionSpec as P  # isort: skip

import bnext.jax  # isort: skip

rng = np.random.default_rng()
MASK, WEIGHTS = drawn_mask(rng, *X.shape[:2])
WHOLE = (X, WEIGHT, BIAS, RESIDUAL, DY)


def of_positions(spec):
    """How an array over positions is divided where x is by `spec`; channels are last."""
    return P(*tuple(spec)[:2])


def masked_loss(x, weight, bias, residual, dy, positions, activation=None, **options):
    name = "mask" if positions.dtype == bool else "sample_weight"
    results = bnext.jax.batch_norm(
        x, weight, bias, residual=residual, activation=activation, **{name: positions}, **options
    )
    return cost(*results, dy)


def compare(function, arrays, specs, mesh, *options, **more):
    """As sharded_jit.py, by a spec for each array."""
    return compare_by(function, arrays, [putting(mesh, spec) for spec in specs], *options, **more)


def masks():
    """Shards without a position that counts; gradients are the whole batch's."""
    for kind in KINDS:
        for number, (mesh, spec) in enumerate((
            (LINE, P("data")), (GRID, P("data", "model")), (GRID, P("data", None, "model")),
            (LINE, P(None, None, "data")),
        )):  # fmt: skip
            mesh = kind(mesh)
            activation = (None, "relu", "gelu", "leaky_relu")[number % 4]
            function = jax.grad(functools.partial(masked_loss, activation=activation), range(4))
            of_channels = P(*tuple(spec)[2:])
            for positions in (MASK, WEIGHTS):
                for given in (of_positions(spec), P()):
                    specs = (spec, of_channels, of_channels, spec, spec, given)
                    with jax.set_mesh(mesh):
                        dx, *_ = compare(function, (*WHOLE, positions), specs, mesh)
                    assert dx.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)


def masks_channels_first():
    def first(array):
        return array.swapaxes(1, 2)

    arrays = first(X), WEIGHT, BIAS, first(RESIDUAL), first(DY), MASK
    function = functools.partial(masked_loss, channel_axis=1, activation="relu")
    for spec in (P("data"), P("data", "model"), P("data", None, "model")):
        given = P("data", *tuple(spec)[2:])
        specs = (spec, P(), P(), spec, spec, given)
        compare(jax.grad(function, range(4)), arrays, specs, GRID)


def masks_have_the_bits_of_shard_map():
    for positions in (MASK, WEIGHTS):
        name = "mask" if positions is MASK else "sample_weight"

        def norm(x, weight, bias, positions, name=name, **options):
            return bnext.jax.batch_norm(
                x, weight, bias, activation="silu", **{name: positions}, **options
            )

        by_hand = jax.shard_map(
            functools.partial(norm, axis_name="data"), mesh=LINE,
            in_specs=(P("data"), P(), P(), P("data")), out_specs=(P("data"), P()),
        )  # fmt: skip
        x, given = (putting(LINE, P("data"))(each) for each in (X, positions))
        actual = jax.jit(norm)(x, WEIGHT, BIAS, given)
        jax.tree.map(np.testing.assert_array_equal, actual, by_hand(x, WEIGHT, BIAS, given))


def masks_of_second_derivatives():
    def product(x, weight, bias, residual, dy, positions):
        def of_x(x):
            return masked_loss(x, weight, bias, residual, dy, positions, "gelu")

        return jax.jvp(jax.grad(of_x), (x,), (dy,))[1]

    data = P("data")
    specs = (data, P(), P(), data, data, data)
    compare(product, (*WHOLE, WEIGHTS), specs, LINE, tolerance=3e-5)


def masks_mapped():
    """Over models that share x and the mask, and with the batch along vmap's axis."""
    weights, biases = (np.stack([each, 2 * each, 3 * each]) for each in (WEIGHT, BIAS))
    gradient = jax.grad(functools.partial(masked_loss, activation="relu"), range(4))
    models = jax.vmap(gradient, (None, 0, 0, None, None, None))
    data = P("data")
    specs = (data, P(), P(), data, data, data)
    arrays = (X, weights, biases, RESIDUAL, DY, MASK)
    compare(models, arrays, specs, LINE)

    def of_examples(x, weight, bias, residual, dy, mask):
        y, moments = jax.vmap(
            lambda x, residual, mask: bnext.jax.batch_norm(
                x, weight, bias, residual=residual, activation="relu", mask=mask,
                axis_name="batch",
            ),
            axis_name="batch", out_axes=(0, None),
        )(x, residual, mask)  # fmt: skip
        return cost(y, moments, dy)

    compare(jax.grad(of_examples, range(4)), (*WHOLE, MASK), specs, LINE)


def masks_by_given_statistics():
    def function(x, mean, var, weight, bias, residual, dy, mask):
        y = bnext.jax.normalize(
            x, mean, var, weight, bias, residual=residual, activation="relu", mask=mask
        )
        return (y * y * dy).sum()

    arrays = (X, MEAN, VAR, WEIGHT, BIAS, RESIDUAL, DY, MASK)
    data = P("data", "model")
    specs = (data, P(), P(), P(), P(), data, data, data)
    compare(jax.grad(function, range(6)), arrays, specs, GRID)


def statistics_alone():
    results = compare(
        lambda x, w: bnext.jax.moments(x, sample_weight=w), (X, WEIGHTS), (P("data"),) * 2, LINE
    )
    np.testing.assert_allclose(results.count, WEIGHTS.sum(dtype=np.float64), rtol=1e-7)


# --- norms of examples ----------------------------------------------------------------------------

NORMS = {
    "layer": lambda x, weight, bias: bnext.jax.layer_norm(x, 16, weight, bias),
    "rms": lambda x, weight, bias: bnext.jax.rms_norm(x, 16, weight) + bias,
    "group": lambda x, weight, bias: bnext.jax.group_norm(x, 4, weight, bias, activation="silu"),
    "instance": lambda x, *affine: bnext.jax.instance_norm(x, *affine, activation="relu"),
}


def cubes(norm, x, weight, bias, dy):
    return (norm(x, weight, bias) ** 3 * dy).sum()


def norms_of_examples():
    """Values need no exchange, gradients of parameters are added up."""
    for kind in KINDS:
        for name, norm in NORMS.items():
            divisions = [(LINE, P("data")), (GRID, P(("data", "model")))]
            if name in ("layer", "rms"):
                divisions.append((GRID, P("data", "model")))
            if name == "instance":
                divisions.append((GRID, P("data", None, "model")))
            for mesh, spec in divisions:
                mesh = kind(mesh)
                data = putting(mesh, spec)
                of_channels = P(*tuple(spec)[2:])
                affine = [putting(mesh, of_channels)(each) for each in (WEIGHT, BIAS)]
                with jax.set_mesh(mesh):
                    call = jax.jit(norm)
                    y = call(data(X), *affine)
                    assert not exchanges(call, data(X), *affine)
                    assert y.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
                    specs = (spec, of_channels, of_channels, spec)
                    gradient = jax.grad(functools.partial(cubes, norm), range(3))
                    arrays = (X, WEIGHT, BIAS, DY)
                    dx, *_ = compare(gradient, arrays, specs, mesh, tolerance=1e-5)
                assert dx.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
                assert dx.addressable_shards[0].data.size < X.size
                np.testing.assert_array_equal(y, jax.jit(norm)(X, WEIGHT, BIAS))


def norms_of_examples_mapped():
    """By vmap over examples in shards, as in Equinox; over weights; gradients of each example."""
    for norm in (NORMS["layer"], NORMS["rms"]):

        def of_examples(x, weight, bias, dy, norm=norm):
            y = jax.vmap(jax.vmap(lambda x: norm(x, weight, bias)))(x)
            return (y**3 * dy).sum()

        specs = (P("data"), P(), P(), P("data"))
        gradient = jax.grad(of_examples, range(3))
        compare(gradient, (X, WEIGHT, BIAS, DY), specs, LINE, tolerance=1e-5)
        each = jax.vmap(jax.grad(functools.partial(cubes, norm), range(3)), (0, None, None, 0))
        compare(each, (X, WEIGHT, BIAS, DY), specs, LINE, ())
        weights, biases = (np.stack([each, 2 * each]) for each in (WEIGHT, BIAS))
        models = jax.vmap(jax.grad(functools.partial(cubes, norm), range(3)), (None, 0, 0, None))
        compare(models, (X, weights, biases, DY), specs, LINE, tolerance=1e-5)


def norms_of_second_derivatives():
    for norm in NORMS.values():

        def product(x, weight, bias, dy, norm=norm):
            gradient = jax.grad(lambda x: cubes(norm, x, weight, bias, dy))
            return jax.jvp(gradient, (x,), (dy,))[1]

        specs = (P("data"), P(), P(), P("data"))
        compare(product, (X, WEIGHT, BIAS, DY), specs, LINE, tolerance=3e-5)


def by_gspmd():
    """XLA's older way of dividing programs."""
    jax.config.update("jax_use_shardy_partitioner", False)
    data = P("data")
    function = jax.grad(functools.partial(masked_loss, activation="relu"), range(4))
    compare(function, (*WHOLE, MASK), (data, P(), P(), data, data, data), LINE)
    for norm in NORMS.values():
        gradient = jax.grad(functools.partial(cubes, norm), range(3))
        compare(gradient, (X, WEIGHT, BIAS, DY), (data, P(), P(), data), LINE, tolerance=1e-5)
    jax.config.update("jax_use_shardy_partitioner", True)


if __name__ == "__main__":
    run_checks(__name__)
