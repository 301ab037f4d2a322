"""Programs that run at once in many threads end, with right values."""

import pytest

from ..limits import WIDE
from ..subprocesses import output_of
from . import support  # noqa: F401 - where JAX is missing, the test is not run

PROGRAM = """
    from concurrent.futures import ThreadPoolExecutor

    import jax, numpy as np
    import bnext.jax

    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 28, 28, 64)).astype(np.float32)
    small = x[0, 0]

    @jax.jit
    def step(x):
        def loss(x):
            y, moments = bnext.jax.batch_norm(x)
            return (y**3).sum(), (y, moments)
        return jax.grad(loss, has_aux=True)(x)

    def one(number):
        given = (x, small)[number % 2] + np.float32(number % 5)
        return number, jax.tree.map(np.asarray, step(given))

    expected = {number: one(number)[1] for number in range(10)}
    with ThreadPoolExecutor(8) as pool:
        done = 0
        for number, result in pool.map(one, range(1000)):
            right = expected[number % 10]
            jax.tree.map(np.testing.assert_array_equal, result, right)
            done += 1
    print(done)
"""

# Of other norms, and of masks: vmap over x, which is one call, and over parameters, a loop.
NORMS = """
    from concurrent.futures import ThreadPoolExecutor

    import jax, numpy as np
    import bnext.jax

    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 14, 14, 64)).astype(np.float32)
    weights = jax.numpy.asarray(rng.uniform(0.5, 1.5, (16, 64)), np.float32)
    mask = rng.random((16, 14, 14)) < 0.5

    def cubes(norm):
        return jax.jit(jax.grad(lambda x: (norm(x) ** 3).sum()))

    steps = [
        cubes(lambda x: bnext.jax.layer_norm(x, 64)),
        cubes(jax.vmap(lambda x: bnext.jax.rms_norm(x, 64))),
        cubes(lambda x: bnext.jax.group_norm(x, 8)),
        cubes(lambda x: jax.vmap(lambda x, w: bnext.jax.instance_norm(x[None], w))(x, weights)),
        cubes(lambda x: bnext.jax.batch_norm(x, mask=mask)[0]),
    ]

    def one(number):
        return number, np.asarray(steps[number % 5](x + np.float32(number % 2)))

    expected = {number: one(number)[1] for number in range(10)}
    with ThreadPoolExecutor(8) as pool:
        done = 0
        for number, result in pool.map(one, range(500)):
            np.testing.assert_array_equal(result, expected[number % 10])
            done += 1
    print(done)
"""


@pytest.mark.timeout(WIDE)
def test_norms_and_masks_from_eight_threads():
    assert output_of(NORMS) == "500"


@pytest.mark.timeout(WIDE)
def test_a_thousand_calls_from_eight_threads():
    assert output_of(PROGRAM) == "1000"
