"""A program on eight devices of the CPU: one batch in shards is one batch on one device."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bnext.jax

assert len(jax.devices()) == 8
MESH = Mesh(np.array(jax.devices()), ("data",))
GRID = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
rng = np.random.default_rng(0)
X, DY, RESIDUAL = (rng.normal(size=(32, 5, 6)).astype(np.float32) + 3 for _ in range(3))
WEIGHT, BIAS = rng.uniform(0.5, 1.5, (2, 6)).astype(np.float32)
ARRAYS = (X, WEIGHT, BIAS, RESIDUAL)


def call(x, weight, bias, residual, activation=None, axis_name=None):
    return bnext.jax.batch_norm(
        x, weight, bias, residual=residual, activation=activation, axis_name=axis_name
    )


def loss(function, x, weight, bias, residual, dy):
    y, moments = function(x, weight, bias, residual)
    return (y * y * dy).sum() + (moments.mean * moments.var).sum() * 100


def close(actual, expected, tolerance=3e-6):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        other = np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def sharded(activation, check_vma, mesh=MESH, axes="data"):
    """The function over shards of x and the residual, with parameters that are the same for all."""
    parts = P(axes)
    return jax.shard_map(
        functools.partial(call, activation=activation, axis_name=axes), mesh=mesh,
        in_specs=(parts, P(), P(), parts), out_specs=(parts, P()), check_vma=check_vma,
    )  # fmt: skip


def values_and_gradients():
    """Gradients by parameters are sums over the mesh, and of the whole batch."""
    for activation in (None, "relu", "gelu"):
        one = functools.partial(call, activation=activation)
        expected = one(*ARRAYS)
        of_one = jax.grad(functools.partial(loss, one), range(4))(*ARRAYS, DY)
        for check_vma in (True, False):
            for mesh, axes in ((MESH, "data"), (GRID, "data"), (GRID, ("data", "model"))):
                many = sharded(activation, check_vma, mesh, axes)
                for transform in (lambda function: function, jax.jit):
                    close(transform(many)(*ARRAYS), expected)
                gradient = jax.jit(jax.grad(functools.partial(loss, many), range(4)))
                close(gradient(*ARRAYS, DY), of_one, 1e-5)


def gradients_inside():
    """A training step inside of shard_map: JAX adds gradients of what is the same everywhere."""

    def step(x, weight, bias, residual, dy):
        def of_shard(weight, bias):
            y, _ = call(x, weight, bias, residual, axis_name="data")
            return (y * y * dy).sum()

        return jax.grad(of_shard, (0, 1))(weight, bias)

    many = jax.shard_map(
        step, mesh=MESH, in_specs=(P("data"), P(), P(), P("data"), P("data")), out_specs=P()
    )
    expected = jax.grad(
        lambda weight, bias: (call(X, weight, bias, RESIDUAL)[0] ** 2 * DY).sum(), (0, 1)
    )(WEIGHT, BIAS)
    close(jax.jit(many)(*ARRAYS, DY), expected, 1e-5)


def second_derivatives():
    def product(function):
        def along(dy, x, *others):
            gradient = jax.grad(lambda x: loss(function, x, *others, dy))
            return jax.jvp(gradient, (x,), (dy,))[1]

        return jax.jit(along)(DY, X, WEIGHT, BIAS, RESIDUAL)

    for activation in (None, "gelu"):
        expected = product(functools.partial(call, activation=activation))
        close(product(sharded(activation, True)), expected, 3e-5)


def shards_of_jit():
    """Arrays in shards, without shard_map; sharded_jit.py has more."""
    x, residual, dy = (
        jax.device_put(each, NamedSharding(MESH, P("data"))) for each in (X, RESIDUAL, DY)
    )
    gradient = jax.jit(jax.value_and_grad(functools.partial(loss, call), range(4)))
    expected = gradient(*ARRAYS, DY)
    close(gradient(x, WEIGHT, BIAS, residual, dy), expected)


def the_same_bits_as_a_group():
    """Means are merged in the order of ranks, as bnext's groups merge them."""
    group = bnext.sync.ThreadGroup(8)
    y = group.run(
        lambda rank, shard: bnext.batch_norm_forward(
            shard, WEIGHT, BIAS, channel_axis=-1, group=group
        )[0],
        np.split(X, 8),
    )
    group.close()
    actual = jax.shard_map(
        lambda x, *affine: bnext.jax.batch_norm(x, *affine, axis_name="data")[0],
        mesh=MESH, in_specs=(P("data"), P(), P()), out_specs=P("data"),
    )(X, WEIGHT, BIAS)  # fmt: skip
    np.testing.assert_array_equal(actual, np.concatenate(y))


def more_devices_than_cores():
    """Programs of eight devices at once, large enough for teams of threads: all end."""
    x = jnp.asarray(rng.normal(size=(64, 28, 28, 64)).astype(np.float32))
    x = jax.device_put(x, NamedSharding(MESH, P("data")))
    many = jax.shard_map(
        lambda x: bnext.jax.batch_norm(x, axis_name="data")[0],
        mesh=MESH, in_specs=P("data"), out_specs=P("data"),
    )  # fmt: skip
    gradient = jax.jit(jax.grad(lambda x: (many(x) ** 3).sum()))
    first = gradient(x)
    results = [gradient(x) for _ in range(20)]
    for each in results:
        np.testing.assert_array_equal(each, first)
    y = jax.pmap(lambda x: bnext.jax.batch_norm(x, axis_name="i")[0], axis_name="i")(
        x.reshape(8, 8, 28, 28, 64)
    )
    close(y.reshape(x.shape), jax.jit(many)(x))


def a_thousand_calls_from_eight_threads():
    """Programs of eight devices from threads at once: by shard_map, by jit of shards, by pmap."""
    x = jnp.asarray(rng.normal(size=(16, 14, 14, 32)).astype(np.float32))
    shards = jax.device_put(x, NamedSharding(MESH, P("data")))

    def norm(x):
        return bnext.jax.batch_norm(x, axis_name="data")[0]

    by_map = jax.shard_map(norm, mesh=MESH, in_specs=P("data"), out_specs=P("data"))
    by_pmap = jax.pmap(jax.grad(lambda x: (norm(x) ** 3).sum()), axis_name="data")
    programs = (
        (jax.jit(jax.grad(lambda x: (by_map(x) ** 3).sum())), shards),
        (jax.jit(jax.grad(lambda x: (bnext.jax.batch_norm(x)[0] ** 3).sum())), shards),
        (lambda x: by_pmap(x).reshape(shards.shape), x.reshape(8, 2, *x.shape[1:])),
        (jax.jit(jax.grad(lambda x: (bnext.jax.batch_norm(x)[0] ** 3).sum())), x),
    )
    first = [np.asarray(program(given)) for program, given in programs]
    for each in first:
        close(each, first[-1], 1e-5)

    def one(number):
        program, given = programs[number % len(programs)]
        np.testing.assert_array_equal(program(given), first[number % len(programs)])

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(one, range(1000)))) == 1000


if __name__ == "__main__":
    for check in (
        values_and_gradients, gradients_inside, second_derivatives, shards_of_jit,
        the_same_bits_as_a_group, more_devices_than_cores,
        a_thousand_calls_from_eight_threads,
    ):  # fmt: skip
        check()
        print(check.__name__)
