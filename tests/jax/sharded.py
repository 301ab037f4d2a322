"""A program on eight devices of the CPU: one batch in shards is one batch on one device."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .eight_devices import GRID, LINE, close, cost, drawn, drawn_mask, jax, putting, run_checks

from jax.sharding import PartitionSpec as P  # isort: skip - of the same devices

import bnext.jax  # isort: skip

jnp = jax.numpy
rng = np.random.default_rng(0)
X, DY, RESIDUAL, WEIGHT, BIAS = drawn(rng, 32, 5, 6)
MASK, WEIGHTS = drawn_mask(rng, 32, 5)


def given(more):
    """The argument that `more` is: a residual, or over positions."""
    if more.ndim == 3:
        return {"residual": more}
    return {"mask" if more.dtype == bool else "sample_weight": more}


def call(x, weight, bias, more, activation=None, axis_name=None):
    return bnext.jax.batch_norm(
        x, weight, bias, activation=activation, axis_name=axis_name, **given(more)
    )


def loss(function, *arrays, dy=DY):
    return cost(*function(*arrays), dy)


def sharded(activation, check_vma, mesh=LINE, axes="data"):
    """The function over shards of x and `more`, with parameters that are the same for all."""
    parts = P(axes)
    return jax.shard_map(
        functools.partial(call, activation=activation, axis_name=axes), mesh=mesh,
        in_specs=(parts, P(), P(), parts), out_specs=(parts, P()), check_vma=check_vma,
    )  # fmt: skip


def values_and_gradients():
    """Gradients by parameters are sums over the mesh, and of the whole batch. Shards may have no
    position that counts."""
    for activation, more in (
        (None, RESIDUAL), ("relu", RESIDUAL), ("gelu", RESIDUAL), (None, MASK), (None, WEIGHTS),
    ):  # fmt: skip
        arrays, wanted = (X, WEIGHT, BIAS, more), range(4 if more is RESIDUAL else 3)
        one = functools.partial(call, activation=activation)
        expected = one(*arrays)
        of_one = jax.grad(functools.partial(loss, one), wanted)(*arrays)
        for check_vma in (True, False):
            for mesh, axes in ((LINE, "data"), (GRID, "data"), (GRID, ("data", "model"))):
                many = sharded(activation, check_vma, mesh, axes)
                close(jax.jit(many)(*arrays), expected)
                if more is RESIDUAL:
                    close(many(*arrays), expected)
                gradient = jax.jit(jax.grad(functools.partial(loss, many), wanted))
                close(gradient(*arrays), of_one, 1e-5)


def gradients_inside():
    """A training step inside of shard_map: JAX adds gradients of what is the same everywhere."""

    def step(x, weight, bias, residual, dy):
        def of_shard(weight, bias):
            y, _ = call(x, weight, bias, residual, axis_name="data")
            return (y * y * dy).sum()

        return jax.grad(of_shard, (0, 1))(weight, bias)

    many = jax.shard_map(
        step, mesh=LINE, in_specs=(P("data"), P(), P(), P("data"), P("data")), out_specs=P()
    )
    expected = jax.grad(
        lambda weight, bias: (call(X, weight, bias, RESIDUAL)[0] ** 2 * DY).sum(), (0, 1)
    )(WEIGHT, BIAS)
    close(jax.jit(many)(X, WEIGHT, BIAS, RESIDUAL, DY), expected, 1e-5)


def second_derivatives():
    def product(function, more):
        def along(dy, x, *others):
            gradient = jax.grad(lambda x: loss(function, x, *others, dy=dy))
            return jax.jvp(gradient, (x,), (dy,))[1]

        return jax.jit(along)(DY, X, WEIGHT, BIAS, more)

    for activation, more in ((None, RESIDUAL), ("gelu", RESIDUAL), (None, MASK)):
        expected = product(functools.partial(call, activation=activation), more)
        close(product(sharded(activation, True), more), expected, 3e-5)


def shards_of_jit():
    """Arrays in shards, without shard_map; sharded_jit.py has more."""
    put = putting(LINE, P("data"))
    for more in (RESIDUAL, MASK):
        wanted = range(4 if more is RESIDUAL else 3)
        gradient = jax.jit(jax.value_and_grad(functools.partial(loss, call), wanted))
        arrays = put(X), WEIGHT, BIAS, put(more)
        close(gradient(*arrays, dy=put(DY)), gradient(X, WEIGHT, BIAS, more))
    for norm in (
        lambda x, w: bnext.jax.layer_norm(x, 6, w),
        lambda x, w: bnext.jax.group_norm(x, 2, w),
    ):
        step = jax.jit(jax.grad(lambda x, w, norm=norm: (norm(x, w) ** 3 * DY).sum(), (0, 1)))
        close(step(put(X), WEIGHT), step(X, WEIGHT))


def the_same_bits_as_a_group():
    """Means are merged in the order of ranks, as bnext's groups merge them."""
    for more in (None, MASK):
        group = bnext.sync.ThreadGroup(8)

        def member(rank, shard, more=more, group=group):
            mask = {} if more is None else {"mask": np.split(more, 8)[rank]}
            return bnext.batch_norm_forward(
                shard, WEIGHT, BIAS, channel_axis=-1, group=group, **mask
            )[0]

        y = group.run(member, np.split(X, 8))
        group.close()
        if more is None:
            actual = jax.shard_map(
                lambda x, *affine: bnext.jax.batch_norm(x, *affine, axis_name="data")[0],
                mesh=LINE, in_specs=(P("data"), P(), P()), out_specs=P("data"),
            )(X, WEIGHT, BIAS)  # fmt: skip
        else:
            actual = sharded(None, True)(X, WEIGHT, BIAS, more)[0]
        np.testing.assert_array_equal(actual, np.concatenate(y))


def moments_and_running_statistics():
    whole = bnext.jax.moments(X, mask=MASK)
    many = jax.shard_map(
        lambda x, mask: bnext.jax.moments(x, mask=mask, axis_name="data"), mesh=LINE,
        in_specs=P("data"), out_specs=P(),
    )(X, MASK)  # fmt: skip
    assert many.count == MASK.sum()
    close(many, whole)
    nothing = np.zeros_like(MASK)
    y, moments = sharded(None, True)(X, WEIGHT, BIAS, nothing)
    assert not y.any()
    assert moments.count == 0
    running = bnext.jax.move_running(WEIGHT, BIAS, moments)
    np.testing.assert_array_equal(running[0], WEIGHT)


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
                norm, mesh=LINE, in_specs=(P("data"), P(), P()), out_specs=P("data"),
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
            inside, mesh=LINE, in_specs=(P("data"), P("data"), P(), P()), out_specs=P()
        )
        close(jax.jit(of_mesh)(X, DY, WEIGHT, BIAS), of_one[1:], 1e-5)


def more_devices_than_cores():
    """Programs of eight devices at once, large enough for teams of threads: all end."""
    x = jnp.asarray(rng.normal(size=(64, 28, 28, 64)).astype(np.float32))
    x = putting(LINE, P("data"))(x)
    many = jax.shard_map(
        lambda x: bnext.jax.batch_norm(x, axis_name="data")[0],
        mesh=LINE, in_specs=P("data"), out_specs=P("data"),
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
    shards = putting(LINE, P("data"))(x)

    def norm(x):
        return bnext.jax.batch_norm(x, axis_name="data")[0]

    by_map = jax.shard_map(norm, mesh=LINE, in_specs=P("data"), out_specs=P("data"))
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
    run_checks(__name__)
