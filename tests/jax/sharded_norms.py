"""A program on eight devices of the CPU: masks of a batch in shards, and norms of examples."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bnext.jax

assert len(jax.devices()) == 8
MESH = Mesh(np.array(jax.devices()), ("data",))
GRID = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
rng = np.random.default_rng(0)
X, DY = (rng.normal(size=(32, 5, 6)).astype(np.float32) + 3 for _ in range(2))
WEIGHT, BIAS = rng.uniform(0.5, 1.5, (2, 6)).astype(np.float32)
MASK = rng.random((32, 5)) < 0.6
MASK[8:12] = False  # the third of eight shards has nothing
MASK[28:] = True  # the last has all
WEIGHTS = np.where(MASK, rng.choice([0.5, 1, 3], (32, 5)), 0).astype(np.float32)


def close(actual, expected, tolerance=3e-6):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        other = np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def call(x, weight, bias, positions, axis_name=None):
    name = "mask" if positions.dtype == bool else "sample_weight"
    return bnext.jax.batch_norm(x, weight, bias, axis_name=axis_name, **{name: positions})


def sharded(check_vma, mesh=MESH, axes="data"):
    parts = P(axes)
    return jax.shard_map(
        functools.partial(call, axis_name=axes), mesh=mesh,
        in_specs=(parts, P(), P(), parts), out_specs=(parts, P()), check_vma=check_vma,
    )  # fmt: skip


def loss(function, x, weight, bias, positions, dy):
    y, moments = function(x, weight, bias, positions)
    return (y * y * dy).sum() + (moments.mean * moments.var).sum() * 100


def masks():
    """Shards without a position that counts; gradients by parameters are sums over the mesh."""
    for positions in (MASK, WEIGHTS):
        expected = call(X, WEIGHT, BIAS, positions)
        of_one = jax.grad(functools.partial(loss, call), range(3))(X, WEIGHT, BIAS, positions, DY)
        for check_vma in (True, False):
            for mesh, axes in ((MESH, "data"), (GRID, "data"), (GRID, ("data", "model"))):
                many = sharded(check_vma, mesh, axes)
                close(jax.jit(many)(X, WEIGHT, BIAS, positions), expected)
                gradient = jax.jit(jax.grad(functools.partial(loss, many), range(3)))
                close(gradient(X, WEIGHT, BIAS, positions, DY), of_one, 1e-5)


def masks_of_second_derivatives():
    def product(function):
        def along(dy, x, *others):
            gradient = jax.grad(lambda x: loss(function, x, *others, dy))
            return jax.jvp(gradient, (x,), (dy,))[1]

        return jax.jit(along)(DY, X, WEIGHT, BIAS, MASK)

    close(product(sharded(True)), product(call), 3e-5)


def masks_have_the_bits_of_a_group():
    group = bnext.sync.ThreadGroup(8)
    y = group.run(
        lambda rank, shard: bnext.batch_norm_forward(
            shard, WEIGHT, BIAS, channel_axis=-1, mask=np.split(MASK, 8)[rank], group=group
        )[0],
        np.split(X, 8),
    )
    group.close()
    actual = sharded(True)(X, WEIGHT, BIAS, MASK)[0]
    np.testing.assert_array_equal(actual, np.concatenate(y))


def moments_and_running_statistics():
    whole = bnext.jax.moments(X, mask=MASK)
    many = jax.shard_map(
        lambda x, mask: bnext.jax.moments(x, mask=mask, axis_name="data"), mesh=MESH,
        in_specs=P("data"), out_specs=P(),
    )(X, MASK)  # fmt: skip
    assert many.count == MASK.sum()
    close(many, whole)
    nothing = np.zeros_like(MASK)
    y, moments = sharded(True)(X, WEIGHT, BIAS, nothing)
    assert not y.any()
    assert moments.count == 0
    running = bnext.jax.move_running(WEIGHT, BIAS, moments)
    np.testing.assert_array_equal(running[0], WEIGHT)


def shards_of_jit():
    """Arrays in shards, without shard_map: values are of the whole arrays."""
    shards = NamedSharding(MESH, P("data"))
    x, mask = jax.device_put(X, shards), jax.device_put(MASK, shards)
    gradient = jax.jit(jax.grad(functools.partial(loss, call), range(3)))
    close(gradient(x, WEIGHT, BIAS, mask, DY), gradient(X, WEIGHT, BIAS, MASK, DY))
    for norm in (
        lambda x, w: bnext.jax.layer_norm(x, 6, w),
        lambda x, w: bnext.jax.group_norm(x, 2, w),
    ):
        step = jax.jit(jax.grad(lambda x, w, norm=norm: (norm(x, w) ** 3 * DY).sum(), (0, 1)))
        close(step(x, WEIGHT), step(X, WEIGHT))


def norms_of_examples():
    """Shards are normalized by themselves; gradients of parameters are of the whole mesh."""

    def layer(x, weight, bias):
        return bnext.jax.layer_norm(x, 6, weight, bias)

    def rms(x, weight, bias):
        return bnext.jax.rms_norm(x, 6, weight) + bias

    def group(x, weight, bias):
        return bnext.jax.group_norm(x, 3, weight, bias)

    def instance(x, weight, bias):
        return bnext.jax.instance_norm(x, weight, bias)

    def cubes(function, x, weight, bias):
        return (function(x, weight, bias) ** 3 * DY).sum()

    for norm in (layer, rms, group, instance):
        expected = norm(X, WEIGHT, BIAS)
        of_one = jax.grad(functools.partial(cubes, norm), range(3))(X, WEIGHT, BIAS)
        for check_vma in (True, False):
            many = jax.shard_map(
                norm, mesh=MESH, in_specs=(P("data"), P(), P()), out_specs=P("data"),
                check_vma=check_vma,
            )  # fmt: skip
            np.testing.assert_array_equal(jax.jit(many)(X, WEIGHT, BIAS), expected)
            gradient = jax.jit(jax.grad(functools.partial(cubes, many), range(3)))
            close(gradient(X, WEIGHT, BIAS), of_one, 1e-5)

        def inside(x, dy, weight, bias, norm=norm):
            def of_shard(weight, bias):
                return (norm(x, weight, bias) ** 3 * dy).sum()

            return jax.grad(of_shard, (0, 1))(weight, bias)

        of_mesh = jax.shard_map(
            inside, mesh=MESH, in_specs=(P("data"), P("data"), P(), P()), out_specs=P()
        )
        close(jax.jit(of_mesh)(X, DY, WEIGHT, BIAS), of_one[1:], 1e-5)


if __name__ == "__main__":
    for check in (
        masks, masks_of_second_derivatives, masks_have_the_bits_of_a_group,
        moments_and_running_statistics, shards_of_jit, norms_of_examples,
    ):  # fmt: skip
        check()
        print(check.__name__)
