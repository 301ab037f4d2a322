"""Examples along an axis of `jax.vmap`, as more examples of one call.

JAX maps a function with a gradient of its own by mapping its forward and its backward rule. For a
norm of examples that is right, and slow: the rule makes gradients of parameters for each mapped
example, and JAX adds them up. `folding` makes the function one operation of a program, which takes
the axis in before anything is differentiated, so that both passes are one call for all examples.
Gradients of each example (`jax.vmap` of `jax.grad`) are differentiated first, and mapped then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.dispatch import prim_requires_devices_during_lowering  # which has no public name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["folding"]


def folding(
    name: str, function: Callable[..., Any], fold: Callable[[Any, Any], tuple[Any, Any]],
    data: Callable[[Any], int],
) -> Callable[..., Any]:  # fmt: skip
    """Give a function that takes in axes of x and of other data, where nothing else is mapped.

    Parameters
    ----------
    name : str
        Of the operation in programs.
    function : callable
        Of how, x, further arrays of its shape, and other arrays; its result has the shape and the
        dtype of x.
    fold : callable
        From how and x with one more axis, the first, to how and x of a call for all of it.
    data : callable
        From how to the number of arrays that have the shape of x.

    Returns
    -------
    callable
        `function` of the same arguments.
    """
    operation = Primitive(name)

    def plain(*arrays: Any, how: Any) -> Any:
        return function(how, *arrays)

    def shape_of(x: Any, *others: Any, how: Any) -> Any:
        del others, how
        return x.update(weak_type=False)

    def derivative(primals: Sequence[Any], tangents: Sequence[Any], *, how: Any) -> Any:
        instantiated = tuple(ad.instantiate_zeros(each) for each in tangents)
        return jax.jvp(functools.partial(plain, how=how), tuple(primals), instantiated)

    def mapped(arrays: Sequence[Any], axes: Sequence[int | None], *, how: Any) -> tuple[Any, int]:
        count = data(how)
        whole = all(axis is not None for axis in axes[:count])
        if not whole or any(axis is not None for axis in axes[count:]):
            return jax.vmap(functools.partial(plain, how=how), tuple(axes))(*arrays), 0
        moved = [
            jnp.moveaxis(each, axis, 0)
            for each, axis in zip(arrays[:count], axes, strict=False)
            if axis is not None
        ]
        folded = [fold(how, each) for each in moved]
        together = [each for _, each in folded]
        y = operation.bind(*together, *arrays[count:], how=folded[0][0])
        return y.reshape(moved[0].shape), 0

    operation.def_impl(plain)
    operation.def_abstract_eval(shape_of)
    ad.primitive_jvps[operation] = derivative
    batching.primitive_batchers[operation] = mapped
    # What it becomes is divided among the devices of a program (`partition`).
    prim_requires_devices_during_lowering.add(operation)
    mlir.register_lowering(operation, mlir.lower_fun(plain, multiple_results=False))
    return lambda how, *arrays: operation.bind(*arrays, how=how)
