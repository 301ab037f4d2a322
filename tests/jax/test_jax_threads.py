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


@pytest.mark.timeout(WIDE)
def test_jax_a_thousand_calls_from_eight_threads():
    assert output_of(PROGRAM) == "1000"
