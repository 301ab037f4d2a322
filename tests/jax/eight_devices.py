"""What programs on eight devices of the CPU share. Processes ask for devices before they start."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import inspect
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

DEVICES = np.array(jax.devices())
assert len(DEVICES) == 8
LINE = Mesh(DEVICES, ("data",))
GRID = Mesh(DEVICES.reshape(4, 2), ("data", "model"))


def explicit(mesh):
    """The mesh, with shardings as part of the types of arrays."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * mesh.devices.ndim)


KINDS = (lambda mesh: mesh, explicit)


def putting(mesh, spec):
    return lambda array: jax.device_put(array, NamedSharding(mesh, spec))


def drawn(rng, *shape):
    """x, dy and a residual; weight and bias."""
    data = [rng.normal(size=shape).astype(np.float32) + 3 for _ in range(3)]
    return *data, *rng.uniform(0.5, 1.5, (2, shape[-1])).astype(np.float32)


def drawn_mask(rng, *shape):
    """A mask, and weights that are 0 outside of it."""
    mask = rng.random(shape) < 0.6
    mask[8:12] = False  # the third of eight shards has nothing
    mask[28:] = True  # the last has all
    return mask, np.where(mask, rng.choice([0.5, 1, 3], shape), 0).astype(np.float32)


def close(actual, expected, tolerance=3e-6):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        other = np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def cost(y, moments, dy):
    """A number that depends on all that a call returns."""
    return (y * y * dy).sum() + (moments.mean * moments.var).sum() * 100 + moments.count


def run_checks(name):
    """Run each function of a program that takes nothing, and print its name."""
    functions = [each for each in vars(sys.modules[name]).values() if inspect.isfunction(each)]
    for check in functions:
        if check.__module__ == name and not inspect.signature(check).parameters:
            check()
            print(check.__name__, flush=True)
