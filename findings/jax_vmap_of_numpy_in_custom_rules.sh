#!/usr/bin/env bash
# Under jit and grad, jax.vmap over an array of NumPy's fails inside a custom_vjp that calls a custom_jvp.
#
# Versions: jax 0.10.2, jaxlib 0.10.2, numpy 2.4.6; Python 3.11 on Linux (x86-64).
# Behaviour: a function with a rule for reverse mode calls one with a rule for forward mode, and jax.vmap maps it
#   over a constant. If the constant is a jax.Array, the gradient is right. If it is the same array of NumPy's,
#   tracing ends in an AssertionError of JAX's own, "non-canonical constant of type ndarray". NumPy's arrays are
#   valid arguments elsewhere, and of the same function without jit as well.
# Output seen:
#   jax.Array, jit: [1.02051   1.2597421 1.4885703 1.7051046]
#   ndarray: [1.02051   1.2597421 1.4885703 1.7051046]
#   ndarray, jit: AssertionError: non-canonical constant of type ndarray
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

cat >"$work/program.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_jvp
def inner(x):
    return jnp.sin(x)


@inner.defjvp
def inner_jvp(primals, tangents):
    return inner(*primals), jnp.cos(primals[0]) * tangents[0]


@jax.custom_vjp
def outer(x, weight):
    return inner(x) * weight


outer.defvjp(
    lambda x, weight: (outer(x, weight), (x, weight)),
    lambda kept, dy: (dy * jnp.cos(kept[0]) * kept[1], dy * inner(kept[0])),
)
values = np.linspace(0, 1, 12).reshape(3, 4)


def gradient_over(x):
    return jax.grad(lambda weight: jax.vmap(outer, (0, None))(x, weight).sum())


weight = jnp.ones(4)
expected = jax.jit(gradient_over(jnp.asarray(values)))(weight)
print("jax.Array, jit:", expected)
print("ndarray:", gradient_over(values)(weight))
np.testing.assert_allclose(gradient_over(values)(weight), expected, rtol=1e-6)
try:
    jax.jit(gradient_over(values))(weight)
except AssertionError as error:
    text = str(error).partition(":")[0]
    print("ndarray, jit: AssertionError:", text)
    assert text == "non-canonical constant of type ndarray"
else:
    raise SystemExit("this has changed: no error")
PYTHON
"$work/env/bin/python" "$work/program.py"
